// The quantiser's loss and its gradients on CUDA; see pq.h. A block has one subspace of kPqChunk vectors of a head: a batch
// of vectors a thread each, then the codewords' components a thread each, over the batch in order.
#include <algorithm>

#include "pq/vectors.cuh"

namespace longspan::kernels {
namespace {

constexpr int kThreads = 128;
constexpr int kShared = 40 * 1024;  // bytes that a batch may take

template <class S>
struct LossArguments {
  DeviceCodebook book;
  DeviceVectors<const S> z;
  DeviceVectors<S> dz;
  const int32_t* codes;
  float *losses, *gradients;  // [B*H*chunks, M] and [B*H*chunks, M, E, d]
  float eps, mean, step;      // mean: 1 / number of components; step: 2 factor mean
  int chunks, batch, power;
};

SIMT_DEVICE float sign_of(float x) { return x > 0.f ? 1.f : x < 0.f ? -1.f : 0.f; }

/// A vector's part of shared memory: weights and pulls of the codewords, gradient of the soft codeword, the piece itself.
struct Piece {
  float *weight, *pull, *dsoft, *z;
  SIMT_DEVICE Piece(float* memory, int E, int d) : weight(memory), pull(memory + E), dsoft(memory + 2 * E), z(dsoft + d) {}
};

/// Fills a piece from the vector's components in `p.z`; gives the loss, and dz by `back`.
template <class S, class Back>
SIMT_DEVICE float differentiate(const LossArguments<S>& a, const float* codewords, int code, const Piece& p, Back&& back) {
  const int E = a.book.E, d = a.book.d;
  float total = 0;
  for (int e = 0; e < E; ++e) {
    float distance = 0;
    for (int j = 0; j < d; ++j) {
      const float x = p.z[j] - codewords[e * d + j];
      distance += a.power == 1 ? fabsf(x) : x * x;
    }
    p.pull[e] = distance;
    p.weight[e] = 1.f / fmaxf(distance, a.eps);
    total += p.weight[e];
  }
  for (int e = 0; e < E; ++e) p.weight[e] /= total;
  float loss = 0;
  for (int j = 0; j < d; ++j) {
    float soft = 0;
    for (int e = 0; e < E; ++e) soft += p.weight[e] * codewords[e * d + j];
    const float apart = soft - codewords[code * d + j], rest = p.z[j] - codewords[code * d + j];
    loss += apart * apart + (simt::mutant(175) ? 0.f : rest * rest);
    p.dsoft[j] = a.step * apart;
  }
  float pulled = 0;
  for (int e = 0; e < E; ++e) {
    float slope = 0;
    for (int j = 0; j < d; ++j) slope += p.dsoft[j] * codewords[e * d + j];
    pulled += p.weight[e] * slope;
  }
  for (int e = 0; e < E; ++e) {
    float slope = 0;
    for (int j = 0; j < d; ++j) slope += p.dsoft[j] * codewords[e * d + j];
    const float distance = p.pull[e];
    p.pull[e] = distance > a.eps ? -(slope - (simt::mutant(176) ? 0.f : pulled)) * p.weight[e] / distance : 0.f;
  }
  for (int j = 0; j < d; ++j) {
    float dz = a.step * (p.z[j] - codewords[code * d + j]);
    for (int e = 0; e < E; ++e) {
      const float x = p.z[j] - codewords[e * d + j];
      dz += p.pull[e] * (a.power == 1 ? sign_of(x) : 2.f * x);
    }
    back(j, dz);
  }
  return loss;
}

// One block is enough: for more, ptxas would spill.
template <class S>
__global__ void __launch_bounds__(kThreads, 1) pq_loss_kernel(const LossArguments<S> a) {
  float* const shared = simt::dyn_smem<float>();
  SIMT_SHARED(float[kThreads], losses);
  const int chunk = int(blockIdx.x) % a.chunks, bh = int(blockIdx.x) / a.chunks, m = int(blockIdx.y);
  const int E = a.book.E, d = a.book.d, size = 2 * (E + d), thread = int(threadIdx.x);
  const float* codewords = a.book.of_head(bh % a.z.H, a.z.H) + int64_t(m) * E * d;
  float* gradient = a.gradients + (int64_t(blockIdx.x) * a.book.M + m) * E * d;
  float loss = 0;
  const int end = min(a.z.T, (chunk + 1) * kPqChunk);
  for (int first = chunk * kPqChunk; first < end; first += a.batch) {
    const int count = min(a.batch, end - first), t = first + thread;
    if (first > chunk * kPqChunk && !simt::mutant(177)) __syncthreads();  // the batch before is added up
    if (thread < count) {
      const Piece p(shared + thread * size, E, d);
      const S* row = a.z.at(bh, t);
      for (int j = 0; j < d; ++j) p.z[j] = m * d + j < a.z.D ? to_float(row[m * d + j]) : 0.f;
      const int code = code_at(a.codes + (int64_t(bh) * a.z.T + t) * a.book.W, m, a.book.bits);
      loss += differentiate(a, codewords, code, p, [&](int j, float dz) {
        if (a.dz.data && m * d + j < a.z.D) store(a.dz.at(bh, t) + m * d + j, dz);
      });
    }
    if (!simt::mutant(178)) __syncthreads();
    for (int place = thread; place < E * d; place += kThreads) {
      const int e = place / d, j = place % d;
      const float codeword = codewords[place];
      float sum = first == chunk * kPqChunk ? 0.f : gradient[place];
      for (int i = 0; i < count; ++i) {
        const Piece p(shared + i * size, E, d);
        const float x = p.z[j] - codeword;
        sum += p.weight[e] * p.dsoft[j] - p.pull[e] * (a.power == 1 ? sign_of(x) : 2.f * x);
        const int code = code_at(a.codes + (int64_t(bh) * a.z.T + first + i) * a.book.W, m, a.book.bits);
        if (code == e) sum -= p.dsoft[j] + a.step * x;
      }
      gradient[place] = sum;
    }
  }
  losses[thread] = loss;
  __syncthreads();
  if (thread != 0) return;
  float sum = 0;
  for (int i = 0; i < kThreads; ++i) sum += losses[i];
  a.losses[int64_t(blockIdx.x) * a.book.M + m] = sum;
}

/// The codebook's gradient over all chunks of the heads of a group, a thread a component; the loss in the last block's first
/// thread.
template <class S>
__global__ void __launch_bounds__(kThreads)
    pq_loss_sum_kernel(const LossArguments<S> a, int B, float* loss, float* dcodebook) {
  const int size = a.book.M * a.book.E * a.book.d, share = a.z.H / a.book.groups;
  const int64_t place = int64_t(blockIdx.x) * kThreads + int(threadIdx.x);
  if (place < int64_t(a.book.groups) * size) {
    const int g = int(place / size);
    float sum = 0;
    for (int b = 0; b < B; ++b)
      for (int64_t i = int64_t(b * a.z.H + g * share) * a.chunks; i < int64_t(b * a.z.H + (g + 1) * share) * a.chunks; ++i)
        sum += a.gradients[i * size + place % size];
    dcodebook[place] = sum;
  }
  if (place != 0) return;
  double sum = 0;  // thousands of parts
  for (int64_t i = 0; i < int64_t(B) * a.z.H * a.chunks * a.book.M; ++i) sum += double(a.losses[i]);
  *loss = float(sum) * a.mean;
}

}  // namespace

void pq_loss_cuda(const Codebook& codebook, int power, double eps, double factor, const PqLossTensors& io,
                  const CudaContext& context) {
  check_vectors("pq_loss", io.z);
  const DeviceCodebook book(codebook);
  const int64_t B = io.z.size[0], H = io.z.size[1], T = io.z.size[2], D = io.z.size[3], chunks = ceil_div(T, kPqChunk);
  const int64_t tasks = B * H * chunks, size = codebook.subspaces * codebook.codewords * codebook.width;
  const auto scratch = [&](int64_t count) {
    return static_cast<float*>(context.workspace.get(context.workspace.self, std::max<int64_t>(1, count) * 4));
  };
  const int piece = 2 * (book.E + book.d) * int(sizeof(float)), batch = std::min(kThreads, std::max(1, kShared / piece));
  const float mean = 1.f / float(std::max<int64_t>(1, B * H * T * D));
  const auto stream = static_cast<cudaStream_t>(context.stream);
  of_dtype(io.z.dtype, [&]<class S>(S) {
    const LossArguments<S> args{book,
                                DeviceVectors<const S>(io.z),
                                io.dz.data ? DeviceVectors<S>(io.dz) : DeviceVectors<S>(),
                                io.codes,
                                scratch(tasks * book.M),
                                scratch(tasks * size),
                                float(eps),
                                mean,
                                2.f * float(factor) * mean,
                                int(chunks),
                                batch,
                                power};
    if (tasks > 0)
      simt::check(simt::launch(pq_loss_kernel<S>, dim3(unsigned(tasks), unsigned(book.M)), dim3(kThreads),
                               size_t(batch * piece), stream, args),
                  "pq_loss");
    simt::check(
        simt::launch(pq_loss_sum_kernel<S>, dim3(unsigned(ceil_div(codebook.groups * size, kThreads))), dim3(kThreads), 0,
                     stream, args, int(B), static_cast<float*>(io.loss), static_cast<float*>(io.dcodebook)),
        "pq_loss");
  });
}

}  // namespace longspan::kernels
