// Grouped products in float32, by FMA; see jobs.cuh.
#include "grouped/jobs.cuh"

namespace longspan::kernels {
namespace {

constexpr int kThreads = 256, kTile = 64, kDepth = 16, kEach = 4;  // a thread has 4 x 4 elements of C, 16 apart

/// Copies the tile [64, 16] at (first, k) of a factor [count, depth] to rows of k; neighbouring threads read neighbours.
SIMT_DEVICE void load(float (&tile)[kDepth][kTile + 1], const float* data, int64_t ld, bool by_rows, int64_t first,
                      int64_t k, int64_t count, int64_t depth) {
  for (int job = int(threadIdx.x); job < kTile * kDepth; job += kThreads) {
    const int i = by_rows ? job / kDepth : job % kTile, d = by_rows ? job % kDepth : job / kTile;
    const int64_t row = first + i, at = k + d;
    tile[d][i] = row < count && at < depth ? data[by_rows ? row * ld + at : at * ld + row] : 0.f;
  }
}

__global__ void __launch_bounds__(kThreads) grouped_product_f32_kernel(const GroupedArguments a) {
  SIMT_SHARED(float[kDepth][kTile + 1], left);
  SIMT_SHARED(float[kDepth][kTile + 1], right);
  GroupedPlace at;
  if (!grouped_place(a, blockIdx.x, kTile, kTile, at)) return;
  const bool a_by_rows = a.kind != GroupedKind::kWeight;
  const bool b_by_rows = a_by_rows && a.by_rows == (a.kind == GroupedKind::kExpand);
  const int y = int(threadIdx.x) / 16, x = int(threadIdx.x) % 16;
  float c[kEach][kEach] = {};
  GroupedPart part;
  for (int cursor = 0; grouped_part(a, at, cursor, sizeof(float), part);)
    for (int64_t k = 0; k < part.k; k += kDepth) {
      load(left, static_cast<const float*>(part.a), part.lda, a_by_rows, at.m0, k, at.m, part.k);
      load(right, static_cast<const float*>(part.b), part.ldb, b_by_rows, at.n0, k, at.n, part.k);
      if (!simt::mutant(234)) __syncthreads();
      SIMT_UNROLL_4
      for (int d = 0; d < kDepth; ++d) {
        SIMT_UNROLL
        for (int i = 0; i < kEach; ++i) SIMT_UNROLL
        for (int j = 0; j < kEach; ++j) c[i][j] += left[d][y + 16 * i] * right[d][x + 16 * j];
      }
      __syncthreads();
    }
  SIMT_UNROLL
  for (int i = 0; i < kEach; ++i) SIMT_UNROLL
  for (int j = 0; j < kEach; ++j) {
    const int64_t row = at.m0 + y + 16 * i, column = at.n0 + x + 16 * j;
    if (row >= at.m || column >= at.n) continue;
    const auto* bias = static_cast<const float*>(a.bias);
    static_cast<float*>(a.out)[grouped_out(a, at, row, column)] =
        c[i][j] + (bias && !simt::mutant(235) ? bias[grouped_bias(a, at, column)] : 0.f);
  }
}

}  // namespace

void grouped_product_f32(const GroupedArguments& args, cudaStream_t stream) {
  const int64_t blocks = grouped_blocks(args, kTile, kTile);
  if (blocks == 0) return;
  simt::check(simt::launch(grouped_product_f32_kernel, dim3(unsigned(blocks)), dim3(kThreads), 0, stream, args),
              "grouped product");
}

}  // namespace longspan::kernels
