#pragma once
// Tiles of floats in shared memory and their products by plain FMA: the float32 path, exact to float rounding.
// A block of 128 threads is 16 x 8: thread (y, x) = (t / 8, t % 8) holds rows y + 16 i and columns x + 8 j of a product.
#include "common/simt.h"

namespace longspan::kernels {

inline constexpr int kFmaThreads = 128;

SIMT_DEVICE int fma_y() { return int(threadIdx.x) / 8; }
SIMT_DEVICE int fma_x() { return int(threadIdx.x) % 8; }

/// A tile [rows, D] with 4 floats between rows, so that 8 rows at one column fall on different banks.
template <int D>
struct FloatTile {
  static constexpr int kStride = D + 4;
  static_assert(D % 32 == 0);
};

/// Copies `Rows` rows of `width` <= D floats, zeros beyond `width` and beyond row `count`; asynchronous when `aligned`.
template <int D, int Rows>
SIMT_DEVICE void load_float_tile(float* tile, const float* rows, int64_t stride, int first, int count, int width,
                                 bool aligned) {
  for (int job = int(threadIdx.x); job < Rows * (D / 4); job += kFmaThreads) {
    const int row = job / (D / 4), column = job % (D / 4) * 4;
    const int columns = first + row < count ? max(0, min(4, width - column)) : 0;
    const float* source = rows + (columns > 0 ? (first + row) * stride + column : 0);
    float* target = tile + row * FloatTile<D>::kStride + column;
    if (aligned)
      ptx::cp_async16(target, source, columns * int(sizeof(float)));
    else
      for (int e = 0; e < 4; ++e) target[e] = e < columns ? source[e] : 0.f;
  }
}

SIMT_DEVICE void float_tiles_landed() {
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  __syncthreads();
}

/// The step of every dot product of rows. The row terms of the backward take it too: where a row sees one key, dp and delta
/// are then equal to the bit and cancel, as they do by definition.
SIMT_DEVICE float dot_step(float sum, const float4& a, const float4& b) {
  return sum + (a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w);
}

/// c[i][j] += <a row y + 16 i, b row x + 8 j>.
template <int D, int RowsA, int RowsB>
SIMT_DEVICE void add_products(float (&c)[RowsA / 16][RowsB / 8], const float* a, const float* b) {
  SIMT_UNROLL_4
  for (int d = 0; d < D; d += 4) {
    float4 left[RowsA / 16], right[RowsB / 8];
    SIMT_UNROLL
    for (int i = 0; i < RowsA / 16; ++i)
      left[i] = *reinterpret_cast<const float4*>(a + (fma_y() + 16 * i) * FloatTile<D>::kStride + d);
    SIMT_UNROLL
    for (int j = 0; j < RowsB / 8; ++j)
      right[j] = *reinterpret_cast<const float4*>(b + (fma_x() + 8 * j) * FloatTile<D>::kStride + d);
    SIMT_UNROLL
    for (int i = 0; i < RowsA / 16; ++i) SIMT_UNROLL
    for (int j = 0; j < RowsB / 8; ++j) c[i][j] = dot_step(c[i][j], left[i], right[j]);
  }
}

/// c[i][j] = <a row y + 16 i, b row x + 8 j>.
template <int D, int RowsA, int RowsB>
SIMT_DEVICE void multiply_rows(float (&c)[RowsA / 16][RowsB / 8], const float* a, const float* b) {
  SIMT_UNROLL
  for (int i = 0; i < RowsA / 16; ++i) SIMT_UNROLL
  for (int j = 0; j < RowsB / 8; ++j) c[i][j] = 0;
  add_products<D, RowsA, RowsB>(c, a, b);
}

/// Writes c, laid out as multiply_rows gives it, to a shared array with rows of `Stride` floats.
template <int RowsA, int RowsB, int Stride>
SIMT_DEVICE void share_product(float* shared, const float (&c)[RowsA / 16][RowsB / 8]) {
  SIMT_UNROLL
  for (int i = 0; i < RowsA / 16; ++i) SIMT_UNROLL
  for (int j = 0; j < RowsB / 8; ++j) shared[(fma_y() + 16 * i) * Stride + fma_x() + 8 * j] = c[i][j];
}

/// acc[i][n] += sum_k p(y + 16 i, k) b[k][4 (x + 8 n) .. + 3], with p(row, k) = p[row * RowStride + k * KeyStride].
/// The sum of one tile is added as a whole: sums over many tiles then round as seldom as there are tiles.
template <int D, int Rows, int Keys, int RowStride, int KeyStride>
SIMT_DEVICE void accumulate(float4 (&acc)[Rows / 16][D / 32], const float* p, const float* b) {
  float4 part[Rows / 16][D / 32] = {};
  SIMT_UNROLL_4
  for (int k = 0; k < Keys; ++k) {
    float weight[Rows / 16];
    SIMT_UNROLL
    for (int i = 0; i < Rows / 16; ++i) weight[i] = p[(fma_y() + 16 * i) * RowStride + k * KeyStride];
    SIMT_UNROLL
    for (int n = 0; n < D / 32; ++n) {
      const float4 x = *reinterpret_cast<const float4*>(b + k * FloatTile<D>::kStride + 4 * (fma_x() + 8 * n));
      SIMT_UNROLL
      for (int i = 0; i < Rows / 16; ++i) {
        part[i][n].x += weight[i] * x.x, part[i][n].y += weight[i] * x.y;
        part[i][n].z += weight[i] * x.z, part[i][n].w += weight[i] * x.w;
      }
    }
  }
  SIMT_UNROLL
  for (int i = 0; i < Rows / 16; ++i) SIMT_UNROLL
  for (int n = 0; n < D / 32; ++n) {
    acc[i][n].x += part[i][n].x, acc[i][n].y += part[i][n].y;
    acc[i][n].z += part[i][n].z, acc[i][n].w += part[i][n].w;
  }
}

/// Stores acc, times factor[i], to rows of `width` floats.
template <int D, int Rows>
SIMT_DEVICE void store_rows(float* rows, int64_t stride, const float4 (&acc)[Rows / 16][D / 32], int first, int count,
                            int width, const float (&factor)[Rows / 16]) {
  SIMT_UNROLL
  for (int i = 0; i < Rows / 16; ++i) {
    const int row = first + fma_y() + 16 * i;
    if (row >= count) continue;
    SIMT_UNROLL
    for (int n = 0; n < D / 32; ++n) {
      const float values[4] = {acc[i][n].x, acc[i][n].y, acc[i][n].z, acc[i][n].w};
      SIMT_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int column = 4 * (fma_x() + 8 * n) + e;
        if (column < width) rows[row * stride + column] = values[e] * factor[i];
      }
    }
  }
}

}  // namespace longspan::kernels
