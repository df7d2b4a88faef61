// Sums and counts of each codeword's vectors on CUDA; see pq.h. A block has one subspace of kPqChunk vectors of a head, a
// thread the components of some codewords, over the vectors in order.
#include <algorithm>

#include "pq/vectors.cuh"

namespace longspan::kernels {
namespace {

constexpr int kThreads = 128;

template <class S>
struct StatisticsArguments {
  DeviceCodebook book;
  DeviceVectors<const S> z;
  const int32_t* codes;
  float* sums;      // [B*H*chunks, M, E, d]
  int32_t* counts;  // [B*H*chunks, M, E]
  int chunks;
};

template <class S>
__global__ void __launch_bounds__(kThreads) pq_stats_kernel(const StatisticsArguments<S> a) {
  SIMT_SHARED(int32_t[kPqChunk], codes);
  const int chunk = int(blockIdx.x) % a.chunks, bh = int(blockIdx.x) / a.chunks, m = int(blockIdx.y);
  const int first = chunk * kPqChunk, count = min(kPqChunk, a.z.T - first);
  for (int i = int(threadIdx.x); i < count; i += kThreads)
    codes[i] = code_at(a.codes + (int64_t(bh) * a.z.T + first + i) * a.book.W, m, a.book.bits);
  if (!simt::mutant(181)) __syncthreads();
  const int d = a.book.d, size = a.book.E * d;
  const int64_t at = int64_t(blockIdx.x) * a.book.M + m;
  for (int place = int(threadIdx.x); place < size; place += kThreads) {
    const int e = place / d, j = place % d;
    const bool inside = m * d + j < a.z.D;
    float sum = 0;
    int32_t found = 0;
    for (int i = 0; i < count; ++i) {
      if (codes[i] != e) continue;
      ++found;
      if (inside) sum += to_float(a.z.at(bh, first + i)[m * d + j]);
    }
    a.sums[at * size + place] = sum;
    if (j == 0) a.counts[at * a.book.E + e] = found;
  }
}

/// Over all chunks of the heads of a group, a thread a component (and, for the first of a codeword, its count).
template <class S>
__global__ void __launch_bounds__(kThreads)
    pq_stats_sum_kernel(const StatisticsArguments<S> a, int B, float* sums, int32_t* counts) {
  const int d = a.book.d, size = a.book.M * a.book.E * d, share = a.z.H / a.book.groups;
  const int64_t place = int64_t(blockIdx.x) * kThreads + int(threadIdx.x);
  if (place >= int64_t(a.book.groups) * size) return;
  const int g = int(place / size), inner = int(place % size);
  float sum = 0;
  int32_t count = 0;
  for (int b = 0; b < (simt::mutant(182) ? 1 : B); ++b)
    for (int64_t i = int64_t(b * a.z.H + g * share) * a.chunks; i < int64_t(b * a.z.H + (g + 1) * share) * a.chunks; ++i) {
      sum += a.sums[i * size + inner];
      if (inner % d == 0) count += a.counts[i * a.book.M * a.book.E + inner / d];
    }
  sums[place] = sum;
  if (inner % d == 0) counts[place / d] = count;
}

}  // namespace

void pq_stats_cuda(const Codebook& codebook, const PqStatistics& io, const CudaContext& context) {
  check_vectors("pq_stats", io.z);
  const DeviceCodebook book(codebook);
  const int64_t B = io.z.size[0], H = io.z.size[1], chunks = ceil_div(io.z.size[2], kPqChunk), tasks = B * H * chunks;
  const int64_t codewords = codebook.subspaces * codebook.codewords, size = codewords * codebook.width;
  const auto scratch = [&](int64_t count) {
    return context.workspace.get(context.workspace.self, std::max<int64_t>(1, count) * 4);
  };
  const auto stream = static_cast<cudaStream_t>(context.stream);
  of_dtype(io.z.dtype, [&]<class S>(S) {
    const StatisticsArguments<S> args{book,
                                      DeviceVectors<const S>(io.z),
                                      io.codes,
                                      static_cast<float*>(scratch(tasks * size)),
                                      static_cast<int32_t*>(scratch(tasks * codewords)),
                                      int(chunks)};
    if (tasks > 0)
      simt::check(simt::launch(pq_stats_kernel<S>, dim3(unsigned(tasks), unsigned(book.M)), dim3(kThreads), 0, stream, args),
                  "pq_stats");
    simt::check(simt::launch(pq_stats_sum_kernel<S>, dim3(unsigned(ceil_div(codebook.groups * size, kThreads))),
                             dim3(kThreads), 0, stream, args, int(B), static_cast<float*>(io.sums), io.counts),
                "pq_stats");
  });
}

}  // namespace longspan::kernels
