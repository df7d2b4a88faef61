// The quantiser's loss and its gradients; see pq.h.
#include <algorithm>

#include "common/vec.h"
#include "pq/pq.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {
namespace {

/// One worker's memory for one subspace of one vector, and the codebook with codewords along the lanes.
template <class T>
struct Scratch {
  T *z, *dz, *distance, *weight, *slope, *soft, *dsoft;

  static int64_t elements(int64_t E, int64_t d) { return 4 * round_up(d, 16) + 3 * round_up(E, 16); }
  Scratch(T* memory, int64_t E, int64_t d) {
    const int64_t wide = round_up(E, 16), narrow = round_up(d, 16);
    z = memory, dz = z + narrow, soft = dz + narrow, dsoft = soft + narrow;
    distance = dsoft + narrow, weight = distance + wide, slope = weight + wide;
  }
};

template <class T>
T sign(T x) {
  return T(x > T(0)) - T(x < T(0));
}

template <class S>
struct Loss {
  using T = Compute<S>;
  const Codebook& codebook;
  int power;
  T eps, factor;
  const PqLossTensors& io;
  const Context& context;
  const int64_t B = io.z.size[0], H = io.z.size[1], N = io.z.size[2], D = io.z.size[3];
  const int64_t M = codebook.subspaces, E = codebook.codewords, d = codebook.width, W = code_words(M, E);
  const int bits = code_bits(E);
  const int64_t chunks = ceil_div(N, kPqChunk), size = M * E * d;
  const T mean = T(1) / T(std::max<int64_t>(1, B * H * N * D));

  template <class U>
  U* scratch(int64_t count) const {
    return static_cast<U*>(context.workspace.get(context.workspace.self, count * int64_t(sizeof(U))));
  }

  /// One subspace of a vector: adds to `gradient` [E,d], gives the loss, and the gradient of z in s.dz.
  T piece(const Scratch<T>& s, const T* codewords, int code, T* gradient) const {
    T total = T(0);
    for (int64_t e = 0; e < E; ++e) {
      T distance = T(0);
      for (int64_t j = 0; j < d; ++j) {
        const T x = s.z[j] - codewords[e * d + j];
        distance += power == 1 ? (x < T(0) ? -x : x) : x * x;
      }
      s.distance[e] = distance;
      s.weight[e] = T(1) / (distance > eps ? distance : eps);
      total += s.weight[e];
    }
    std::fill(s.soft, s.soft + d, T(0));
    for (int64_t e = 0; e < E; ++e) {
      s.weight[e] /= total;
      for (int64_t j = 0; j < d; ++j) s.soft[j] += s.weight[e] * codewords[e * d + j];
    }
    const T* hard = codewords + code * d;
    T loss = T(0);
    for (int64_t j = 0; j < d; ++j) {
      const T apart = s.soft[j] - hard[j], rest = s.z[j] - hard[j];
      loss += apart * apart + rest * rest;
      s.dsoft[j] = T(2) * mean * factor * apart;
      s.dz[j] = T(2) * mean * factor * rest;
      gradient[code * d + j] -= s.dsoft[j] + s.dz[j];
    }
    T pulled = T(0);  // sum over e of weight times what its slope is before the weights are made to add up to 1
    for (int64_t e = 0; e < E; ++e) {
      T slope = T(0);
      for (int64_t j = 0; j < d; ++j) slope += s.dsoft[j] * codewords[e * d + j];
      s.slope[e] = slope;
      pulled += s.weight[e] * slope;
    }
    for (int64_t e = 0; e < E; ++e) {
      // d weight / d distance = -weight (1 - weight) / distance for e itself; the others are in `pulled`.
      const T to_distance = s.distance[e] > eps ? -(s.slope[e] - pulled) * s.weight[e] / s.distance[e] : T(0);
      for (int64_t j = 0; j < d; ++j) {
        const T x = s.z[j] - codewords[e * d + j];
        const T back = to_distance * (power == 1 ? sign(x) : T(2) * x);
        gradient[e * d + j] += s.weight[e] * s.dsoft[j] - back;
        s.dz[j] += back;
      }
    }
    return loss;
  }

  void run() const {
    const int64_t tasks = B * H * chunks, per_worker = Scratch<T>::elements(E, d);
    T* memory = scratch<T>(per_worker * context.parallel.workers);
    T *gradients = scratch<T>(std::max<int64_t>(1, tasks) * size), *losses = scratch<T>(std::max<int64_t>(1, tasks));
    parallel_for(context, tasks, [&](int64_t task, int worker) {
      const Scratch<T> s(memory + worker * per_worker, E, d);
      const int64_t bh = task / chunks, b = bh / H, h = bh % H, first = task % chunks * kPqChunk;
      const T* codewords = static_cast<const T*>(codebook.data) + h / (H / codebook.groups) * size;
      T* gradient = gradients + task * size;
      double loss = 0;  // thousands of pieces
      std::fill(gradient, gradient + size, T(0));
      for (int64_t t = first; t < std::min(N, first + kPqChunk); ++t) {
        const S* z = static_cast<const S*>(io.z.data) + b * io.z.stride[0] + h * io.z.stride[1] + t * io.z.stride[2];
        S* dz = io.dz.data ? static_cast<S*>(io.dz.data) + b * io.dz.stride[0] + h * io.dz.stride[1] + t * io.dz.stride[2]
                           : nullptr;
        for (int64_t m = 0; m < M; ++m) {
          for (int64_t j = 0; j < d; ++j) s.z[j] = m * d + j < D ? load_as<T>(z + m * d + j) : T(0);
          loss += double(
              piece(s, codewords + m * E * d, code_at(io.codes + (bh * N + t) * W, int(m), bits), gradient + m * E * d));
          if (dz)
            for (int64_t j = 0; j < d && m * d + j < D; ++j) store_as<T>(dz + m * d + j, s.dz[j]);
        }
      }
      losses[task] = T(loss);
    });
    double loss = 0;
    for (int64_t task = 0; task < tasks; ++task) loss += double(losses[task]);
    *static_cast<T*>(io.loss) = T(loss * double(mean));
    T* out = static_cast<T*>(io.dcodebook);
    parallel_for(context, codebook.groups * M, [&](int64_t task, int) {
      const int64_t g = task / M, m = task % M, share = H / codebook.groups;
      T* to = out + task * E * d;
      std::fill(to, to + E * d, T(0));
      for (int64_t b = 0; b < B; ++b)
        for (int64_t i = (b * H + g * share) * chunks; i < (b * H + (g + 1) * share) * chunks; ++i)
          for (int64_t k = 0; k < E * d; ++k) to[k] += gradients[i * size + m * E * d + k];
    });
  }
};

}  // namespace

void pq_loss(const Codebook& codebook, int power, double eps, double factor, const PqLossTensors& io,
             const Context& context) {
  switch (io.z.dtype) {
    case DType::kFloat32: return Loss<float>{codebook, power, float(eps), float(factor), io, context}.run();
    case DType::kFloat64: return Loss<double>{codebook, power, eps, factor, io, context}.run();
    case DType::kBFloat16: return Loss<bfloat16>{codebook, power, float(eps), float(factor), io, context}.run();
    case DType::kFloat16: return;  // dispatch_cpu.cpp refuses it
  }
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
