// Sums and counts of the vectors of each codeword; see pq.h.
#include <algorithm>

#include "common/vec.h"
#include "pq/pq.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {
namespace {

template <class S>
void statistics(const Codebook& codebook, const PqStatistics& io, const Context& context) {
  using T = Compute<S>;
  const int64_t B = io.z.size[0], H = io.z.size[1], N = io.z.size[2], D = io.z.size[3];
  const int64_t M = codebook.subspaces, E = codebook.codewords, d = codebook.width, W = code_words(M, E);
  const int bits = code_bits(E);
  const int64_t chunks = ceil_div(N, kPqChunk), tasks = B * H * chunks, size = M * E * d;
  const auto scratch = [&](int64_t bytes) {
    return context.workspace.get(context.workspace.self, std::max<int64_t>(1, tasks) * bytes);
  };
  T* sums = static_cast<T*>(scratch(size * int64_t(sizeof(T))));
  int32_t* counts = static_cast<int32_t*>(scratch(M * E * int64_t(sizeof(int32_t))));
  parallel_for(context, tasks, [&](int64_t task, int) {
    const int64_t bh = task / chunks, b = bh / H, h = bh % H, first = task % chunks * kPqChunk;
    T* sum = sums + task * size;
    int32_t* count = counts + task * M * E;
    std::fill(sum, sum + size, T(0));
    std::fill(count, count + M * E, 0);
    for (int64_t t = first; t < std::min(N, first + kPqChunk); ++t) {
      const S* z = static_cast<const S*>(io.z.data) + b * io.z.stride[0] + h * io.z.stride[1] + t * io.z.stride[2];
      for (int64_t m = 0; m < M; ++m) {
        const int64_t at = m * E + code_at(io.codes + (bh * N + t) * W, int(m), bits);
        ++count[at];
        for (int64_t j = 0; j < d && m * d + j < D; ++j) sum[at * d + j] += load_as<T>(z + m * d + j);
      }
    }
  });
  parallel_for(context, codebook.groups * M, [&](int64_t task, int) {
    const int64_t g = task / M, m = task % M, share = H / codebook.groups;
    T* sum = static_cast<T*>(io.sums) + task * E * d;
    int32_t* count = io.counts + task * E;
    std::fill(sum, sum + E * d, T(0));
    std::fill(count, count + E, 0);
    for (int64_t b = 0; b < B; ++b)
      for (int64_t i = (b * H + g * share) * chunks; i < (b * H + (g + 1) * share) * chunks; ++i) {
        for (int64_t k = 0; k < E * d; ++k) sum[k] += sums[i * size + m * E * d + k];
        for (int64_t e = 0; e < E; ++e) count[e] += counts[i * M * E + m * E + e];
      }
  });
}

}  // namespace

void pq_stats(const Codebook& codebook, const PqStatistics& io, const Context& context) {
  switch (io.z.dtype) {
    case DType::kFloat32: return statistics<float>(codebook, io, context);
    case DType::kFloat64: return statistics<double>(codebook, io, context);
    case DType::kBFloat16: return statistics<bfloat16>(codebook, io, context);
    case DType::kFloat16: return;  // dispatch_cpu.cpp refuses it
  }
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
