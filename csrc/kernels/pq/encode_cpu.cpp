// Nearest codewords; see pq.h. Compiled without contraction: every operation rounds by itself.
#include <algorithm>
#include <type_traits>

#include "common/vec.h"
#include "pq/pq.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {
namespace {

constexpr int64_t kRows = 64;  // of a task

/// Lanes hold rows: `rows` is one subspace of kLanes rows, [width][lanes]. The number of the nearest of E codewords
/// [E][width].
template <class T, int Power>
Mask<T> nearest(const T* rows, const T* codewords, int64_t count, int64_t width) {
  Vec<T> best{};
  Mask<T> number{};
  using Number = std::decay_t<decltype(number[0])>;
  for (int64_t e = 0; e < count; ++e) {
    Vec<T> distance{};
    for (int64_t j = 0; j < width; ++j) {
      const Vec<T> x = load(rows + j * kLanes<T>) - codewords[e * width + j];
      distance += Power == 1 ? max<T>(x, -x) : x * x;
    }
    const Mask<T> less = e == 0 ? Mask<T>{} : distance < best;
    best = e == 0 ? distance : select<T>(less, distance, best);
    number = less ? Mask<T>{} + Number(e) : number;
  }
  return number;
}

template <class S, int Power>
void encode(const Codebook& codebook, const PqTensors& io, const Context& context) {
  using T = Compute<S>;
  const int64_t B = io.z.size[0], H = io.z.size[1], N = io.z.size[2], D = io.z.size[3];
  const int64_t M = codebook.subspaces, E = codebook.codewords, d = codebook.width, W = code_words(M, E);
  const int bits = code_bits(E);
  const int64_t chunks = ceil_div(N, kRows), per_worker = M * d * kLanes<T>;
  T* memory =
      static_cast<T*>(context.workspace.get(context.workspace.self, per_worker * context.parallel.workers * sizeof(T)));
  parallel_for(context, B * H * chunks, [&](int64_t task, int worker) {
    const int64_t bh = task / chunks, b = bh / H, h = bh % H, first = task % chunks * kRows;
    const T* codewords = static_cast<const T*>(codebook.data) + h / (H / codebook.groups) * M * E * d;
    T* rows = memory + worker * per_worker;
    for (int64_t t = first; t < std::min(N, first + kRows); t += kLanes<T>) {
      const int64_t count = std::min<int64_t>(kLanes<T>, N - t);
      for (int64_t lane = 0; lane < kLanes<T>; ++lane) {
        const S* from = static_cast<const S*>(io.z.data) + b * io.z.stride[0] + h * io.z.stride[1] +
                        (t + std::min(lane, count - 1)) * io.z.stride[2];
        for (int64_t i = 0; i < M * d; ++i) rows[i * kLanes<T> + lane] = i < D ? load_as<T>(from + i) : T(0);
      }
      int32_t* out = io.codes + (bh * N + t) * W;
      std::fill(out, out + count * W, 0);
      for (int64_t m = 0; m < M; ++m) {
        const Mask<T> number = nearest<T, Power>(rows + m * d * kLanes<T>, codewords + m * E * d, E, d);
        for (int64_t lane = 0; lane < count; ++lane)
          out[lane * W + m * bits / 32] |= int32_t(uint32_t(number[lane]) << (m * bits % 32));
      }
    }
  });
}

template <class S>
void encode(const Codebook& codebook, int power, const PqTensors& io, const Context& context) {
  if (power == 1) return encode<S, 1>(codebook, io, context);
  encode<S, 2>(codebook, io, context);
}

}  // namespace

void pq_encode(const Codebook& codebook, int power, const PqTensors& io, const Context& context) {
  switch (io.z.dtype) {
    case DType::kFloat32: return encode<float>(codebook, power, io, context);
    case DType::kFloat64: return encode<double>(codebook, power, io, context);
    case DType::kBFloat16: return encode<bfloat16>(codebook, power, io, context);
    case DType::kFloat16: return;  // dispatch_cpu.cpp refuses it
  }
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
