// The family's matrix product in float32, by FMA; one kernel for all ways in which factors are stored.
#include "common/convert.cuh"
#include "lora/launch.h"

namespace longspan::kernels {
namespace {

constexpr int kThreads = 256, kTile = 64, kDepth = 16, kEach = 4;  // a thread has 4 x 4 elements of C, 16 apart

/// Element (i, k) of a factor, whichever of the two is contiguous.
struct Factor {
  const float* data;
  int64_t i_stride, k_stride, count, depth;

  SIMT_DEVICE float at(int64_t i, int64_t k) const {
    return i < count && k < depth ? data[i * i_stride + k * k_stride] : 0.f;
  }
  /// Copies [64, 16] to rows of k; neighbouring threads read neighbours.
  SIMT_DEVICE void load(float (&tile)[kDepth][kTile + 1], int64_t first, int64_t k) const {
    for (int job = int(threadIdx.x); job < kTile * kDepth; job += kThreads) {
      const int i = k_stride == 1 ? job / kDepth : job % kTile, d = k_stride == 1 ? job % kDepth : job / kTile;
      tile[d][i] = at(first + i, k + d);
    }
  }
};

__global__ void __launch_bounds__(kThreads)
    lora_product_f32_kernel(const ProductArguments a, bool a_by_rows, bool b_by_rows) {
  SIMT_SHARED(float[kDepth][kTile + 1], left);
  SIMT_SHARED(float[kDepth][kTile + 1], right);
  const int64_t tiles = ceil_div(a.n, kTile), m0 = blockIdx.x / tiles * kTile, n0 = blockIdx.x % tiles * kTile;
  const int y = int(threadIdx.x) / 16, x = int(threadIdx.x) % 16;
  float c[kEach][kEach] = {};
  for (int p = 0; p < a.count; ++p) {
    const ProductPart& part = a.parts[p];
    const Factor fa{static_cast<const float*>(part.a), a_by_rows ? part.lda : 1, a_by_rows ? 1 : part.lda, a.m, part.k};
    const Factor fb{static_cast<const float*>(part.b), b_by_rows ? part.ldb : 1, b_by_rows ? 1 : part.ldb, a.n, part.k};
    float sum[kEach][kEach] = {};
    for (int64_t k = 0; k < part.k; k += kDepth) {
      fa.load(left, m0, k), fb.load(right, n0, k);
      if (!simt::mutant(141)) __syncthreads();
      SIMT_UNROLL_4
      for (int d = 0; d < kDepth; ++d) {
        SIMT_UNROLL
        for (int i = 0; i < kEach; ++i) SIMT_UNROLL
        for (int j = 0; j < kEach; ++j) sum[i][j] += left[d][y + 16 * i] * right[d][x + 16 * j];
      }
      __syncthreads();
    }
    SIMT_UNROLL
    for (int i = 0; i < kEach; ++i) SIMT_UNROLL
    for (int j = 0; j < kEach; ++j) {
      const bool keep = !part.masked ||
                        kept(a.dropout, m0 + y + 16 * i, n0 + x + 16 * j, 1, uint64_t(a.dropout.seeds[part.projection])) & 1;
      c[i][j] += keep ? sum[i][j] : 0.f;
    }
  }
  const auto* bias = static_cast<const float*>(a.bias);
  const auto* residual = static_cast<const float*>(a.residual);
  SIMT_UNROLL
  for (int i = 0; i < kEach; ++i) SIMT_UNROLL
  for (int j = 0; j < kEach; ++j) {
    const int64_t row = m0 + y + 16 * i, column = n0 + x + 16 * j;
    if (row >= a.m || column >= a.n) continue;
    float value = c[i][j];
    if (a.sums && !a.first) value += a.sums[row * a.n + column];
    if (!a.last) {
      a.sums[row * a.n + column] = value;
      continue;
    }
    if (bias) value += bias[column];
    if (residual) value += residual[row * a.ldr + column];
    static_cast<float*>(a.out)[row * a.ldo + column] = value;
  }
}

}  // namespace

void product_f32(ProductLayout layout, const ProductArguments& args, cudaStream_t stream) {
  const int64_t blocks = ceil_div(args.m, kTile) * ceil_div(args.n, kTile);
  if (blocks == 0) return;
  simt::check(simt::launch(lora_product_f32_kernel, dim3(unsigned(blocks)), dim3(kThreads), 0, stream, args,
                           layout != ProductLayout::kColumnsColumns, layout == ProductLayout::kRowsRows),
              "lora (product)");
}

}  // namespace longspan::kernels
