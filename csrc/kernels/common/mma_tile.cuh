#pragma once
// Tiles of 16-bit elements in shared memory and their products on tensor cores. One warp holds
//   an accumulator C [16 x 8]:  lane (g = lane / 4, c = lane % 4) has C[g][2c], C[g][2c+1], C[g+8][2c], C[g+8][2c+1].
#include <type_traits>

#include "common/simt.h"

namespace longspan::kernels {

using FragmentA = uint32_t[4];  // [16 x 16]
using FragmentB = uint32_t[2];  // [16 x 8]
using FragmentC = float[4];     // [16 x 8]

SIMT_DEVICE int lane_id() { return int(threadIdx.x) & 31; }
SIMT_DEVICE int warp_id() { return int(threadIdx.x) >> 5; }
/// The accumulator's row (of two, 8 apart) and first column (of two) that this lane holds.
SIMT_DEVICE int fragment_row() { return lane_id() >> 2; }
SIMT_DEVICE int fragment_column() { return (lane_id() & 3) * 2; }

/// A tile [rows, D] of 16-bit elements, D a multiple of 16. The 16-byte chunks of a row are permuted so that 8 rows at one
/// chunk fall on 8 different groups of banks: rows repeat their banks after `kPeriod`, and so the chunk's low bits are
/// XORed with row / kPeriod.
template <int D>
struct SharedTile {
  static constexpr int kChunks = D / 8;
  static constexpr int kCommon = kChunks % 8 == 0 ? 8 : kChunks % 4 == 0 ? 4 : 2;  // gcd(kChunks, 8)
  static constexpr int kPeriod = 8 / kCommon;
  static_assert(D % 16 == 0);

  /// Element offset of a chunk.
  SIMT_DEVICE static int offset(int row, int chunk) { return row * D + (chunk ^ permutation(row)) * 8; }

  /// offset(row, chunk + pair * 2) from offset(row, chunk), for chunk 0 or 1: an XOR of what the permutation touches and a
  /// constant, so that lanes keep few addresses. Rows 16 further are 16 * D elements further: they permute alike.
  SIMT_DEVICE static int pair_offset(int first, int pair) {
    constexpr int kTouched = kCommon - 1;
    const int touched = simt::mutant(1) ? 0 : pair * 2 & kTouched;
    return (first ^ touched * 8) + (pair * 2 - touched) * 8;
  }

 private:
  SIMT_DEVICE static int permutation(int row) { return simt::mutant(1) ? 0 : row / kPeriod & (kCommon - 1); }
};

/// Copies `Rows` rows of `width` <= D elements into a tile, zeros beyond `width` and beyond row `count`. Asynchronous when
/// `Aligned` (address and strides are multiples of 16 bytes): the caller commits, waits and synchronises.
template <int D, int Rows, int Threads, bool Aligned, class T>
SIMT_DEVICE void load_tile(T* tile, const T* rows, int64_t stride, int first, int count, int width) {
  constexpr int kChunks = SharedTile<D>::kChunks;
  // Where Threads is a multiple of kChunks, a thread keeps its chunk and walks down the rows.
  constexpr bool kKeepsChunk = Threads % kChunks == 0;
  constexpr int kStep = Threads / kChunks;
  static_assert(sizeof(T) == 2);
  const int begin = int(threadIdx.x) / kChunks, column = int(threadIdx.x) % kChunks;
  const T* walk = rows + (first + begin) * stride + column * 8;
  SIMT_UNROLL
  for (int i = 0; i < (Rows * kChunks + Threads - 1) / Threads; ++i) {
    const int job = i * Threads + int(threadIdx.x);
    if (Rows * kChunks % Threads != 0 && job >= Rows * kChunks) break;
    const int row = kKeepsChunk ? begin + i * kStep : job / kChunks;
    const int chunk = kKeepsChunk ? column : job % kChunks;
    // Past the end nothing is read from the address, wherever it points.
    const T* source = kKeepsChunk ? walk + i * (kStep * stride) : rows + (first + row) * stride + chunk * 8;
    const bool inside = first + row < count || simt::mutant(2);
    const int columns = inside ? max(0, min(8, width - chunk * 8)) : 0;
    T* target = tile + SharedTile<D>::offset(row, chunk);
    if constexpr (Aligned) {
      ptx::cp_async16(target, source, columns * int(sizeof(T)));
    } else {
      SIMT_UNROLL
      for (int e = 0; e < 8; ++e) target[e] = e < columns ? source[e] : T(0.f);
    }
  }
}

/// A tile for the products: `start` elements into an array. The start goes through the same XOR as the lane's offset (both
/// are multiples of what it touches), so that addresses depend on the stage and are not kept in registers for all stages.
template <class T>
struct TileRef {
  const T* array;
  int start;
};
template <class T, int N>
SIMT_DEVICE TileRef<T> ref(const T (&tile)[N]) {
  return {tile, 0};
}
template <class T, int N>
SIMT_DEVICE TileRef<T> ref(const T (&stages)[2][N], int stage) {
  static_assert(N % 64 == 0);
  return {stages[0], stage * N};
}

/// Address of this lane's row for ldmatrix x4 of the block [16 x 16] at rows `row` (a multiple of 16) and columns 16 * pair.
/// The four matrices are its quarters: upper left, lower left, upper right, lower right; with `Across` the middle two are
/// exchanged. mma takes registers that follow each other, so the order of quarters is that of the fragments.
template <int D, bool Across, class T>
SIMT_DEVICE const T* lane_row(TileRef<T> tile, int row, int pair) {
  const int id = lane_id();
  const int lane =
      Across ? SharedTile<D>::offset((id & 7) + (id >> 4 << 3), id >> 3 & 1) : SharedTile<D>::offset(id & 15, id >> 4);
  return tile.array + SharedTile<D>::pair_offset(tile.start + lane, pair) + row * D;
}

/// A fragment of rows [row, row + 16), columns [16 k, 16 k + 16) of a tile.
template <int D, class T>
SIMT_DEVICE void load_a(FragmentA& a, TileRef<T> tile, int row, int k) {
  ptx::ldmatrix_x4(a, lane_row<D, false>(tile, row, k));
}

/// Two B fragments whose columns n are the tile's rows [row, row + 16) and whose k are its columns: B = tile^T.
template <int D, class T>
SIMT_DEVICE void load_b_transposed(FragmentB (&b)[2], TileRef<T> tile, int row, int k) {
  uint32_t r[4];
  ptx::ldmatrix_x4(r, lane_row<D, true>(tile, row, k));
  b[0][0] = r[simt::mutant(3) ? 1 : 0], b[0][1] = r[simt::mutant(3) ? 0 : 1], b[1][0] = r[2], b[1][1] = r[3];
}

/// Two B fragments whose k are the tile's rows [row, row + 16) and whose columns n are its columns [16 n, 16 n + 16).
template <int D, class T>
SIMT_DEVICE void load_b(FragmentB (&b)[2], TileRef<T> tile, int row, int n) {
  uint32_t r[4];
  ptx::ldmatrix_x4_trans(r, lane_row<D, false>(tile, row, n));
  b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
}

/// The A fragment of columns [16 k, 16 k + 16) of accumulators that stand side by side, rounded to T.
template <class T>
SIMT_DEVICE void round_to_a(FragmentA& a, const FragmentC& left, const FragmentC& right) {
  a[0] = simt::pack2(left[0], left[1], T());
  a[simt::mutant(4) ? 2 : 1] = simt::pack2(left[2], left[3], T());
  a[simt::mutant(4) ? 1 : 2] = simt::pack2(right[0], right[1], T());
  a[3] = simt::pack2(right[2], right[3], T());
}

/// C [16 x 8 N] += A [16 x D] B^T, B [8 N x D]: A rows at `row_a`, B rows from `row_b` of their tiles.
template <class T, int D, int N>
SIMT_DEVICE void multiply_transposed(FragmentC (&c)[N], TileRef<T> a_tile, int row_a, TileRef<T> b_tile, int row_b) {
  SIMT_UNROLL
  for (int k = 0; k < D / 16; ++k) {
    FragmentA a;
    load_a<D>(a, a_tile, row_a, k);
    SIMT_UNROLL
    for (int n = 0; n < N / 2; ++n) {
      FragmentB b[2];
      load_b_transposed<D>(b, b_tile, row_b + n * 16, k);
      ptx::mma_m16n8k16(c[2 * n], a, b[0], T());
      ptx::mma_m16n8k16(c[2 * n + 1], a, b[1], T());
    }
  }
}

/// C [16 x 8 N] += P [16 x 8 K] B, with P rounded to T and B [8 K x 8 N] the columns from `16 column` of a tile.
template <class T, int D, int N, int K>
SIMT_DEVICE void multiply_rounded(FragmentC (&c)[N], const FragmentC (&p)[K], TileRef<T> b_tile, int column = 0) {
  SIMT_UNROLL
  for (int k = 0; k < K / 2; ++k) {
    FragmentA a;
    round_to_a<T>(a, p[2 * k], p[2 * k + 1]);
    SIMT_UNROLL
    for (int n = 0; n < N / 2; ++n) {
      FragmentB b[2];
      load_b<D>(b, b_tile, k * 16, column + n);
      ptx::mma_m16n8k16(c[2 * n], a, b[0], T());
      ptx::mma_m16n8k16(c[2 * n + 1], a, b[1], T());
    }
  }
}

/// Stores this lane's part of C [16 x 8 N], times `factor[half]`, to rows of `width` elements; row(half) < 0 is no row.
template <class T, bool Aligned, int N>
SIMT_DEVICE void store_accumulator(T* rows, int64_t stride, const FragmentC (&c)[N], int first_row, int count,
                                   int first_column, int width, const float (&factor)[2]) {
  SIMT_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int row = first_row + fragment_row() + half * 8;
    if (row >= count && !simt::mutant(5)) continue;
    T* out = rows + row * stride;
    SIMT_UNROLL
    for (int n = 0; n < N; ++n) {
      const int column = first_column + n * 8 + fragment_column();
      const float x = c[n][2 * half] * factor[half], y = c[n][2 * half + 1] * factor[half];
      if (Aligned && column + 1 < width) {
        *reinterpret_cast<uint32_t*>(out + column) = simt::pack2(x, y, T());
      } else {
        if (column < width) out[column] = simt::rounded(x, T());
        if (column + 1 < width) out[column + 1] = simt::rounded(y, T());
      }
    }
  }
}

}  // namespace longspan::kernels
