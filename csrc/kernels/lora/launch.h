#pragma once
// What the CUDA side of the family is made of: the arguments of its kernels, and their launches.
#include "common/simt.h"
#include "lora/dropout.cuh"
#include "lora/lora.h"

namespace longspan::kernels {

/// Rows of z that exist at a time, at most; few in the emulation, where thousands of rows take minutes.
#if defined(__CUDACC__)
inline constexpr int64_t kCudaPanelRows = 8192;
#else
inline constexpr int64_t kCudaPanelRows = 512;
#endif
/// Columns that one block of a low-rank product reads, and ranks that it has.
inline constexpr int kPanelColumns = 256, kBlockRanks = 32;
/// Ranks are padded to whole steps of mma in scratch; stored adapters never are.
inline constexpr int kRankStep = 16;

/// Rows whose part of dA and dB is summed by one block: about 16 chunks, at most a panel.
inline constexpr int64_t lora_chunk_rows(int64_t rows) {
  const int64_t share = round_up(ceil_div(rows, 16), 32);
  return share < 32 ? 32 : share > kCudaPanelRows ? kCudaPanelRows : share;
}
/// Rows of a panel: whole chunks, so that borders depend on the number of rows alone.
inline constexpr int64_t lora_panel_rows(int64_t rows) {
  const int64_t chunk = lora_chunk_rows(rows);
  return kCudaPanelRows / chunk * chunk;
}

/// Where a projection's ranks stand: `ranks` of them from `column` in arrays of floats (s, ds), and from `padded` in
/// scratch whose ranks are padded. `projection` is its number, which chooses the seed.
struct RankGroup {
  int ranks, column, padded, projection;
};

/// Low-rank products of one read of x [rows, K] of S, for every projection of the group:
///   row_parts [panels of K, rows, width]    += over K:    (x . D) factor^T
///   column_parts [chunks of rows, width, K]  = over rows: weights^T (x . D)
struct LowRankArguments {
  const void* x;
  int64_t ldx, rows, K, chunk_rows;
  const void* factor;  // [width, ldf] S, or float where `wide`; ranks padded with zeros
  int64_t ldf;
  const float* weights;  // [rows, ldw]
  int64_t ldw;
  float *row_parts, *column_parts;  // null where not wanted
  int64_t width;                    // of all ranks, padded
  RankGroup groups[kLoraGroup];
  int count;
  bool aligned;
  bool wide;  // factor and weights count in float: no tensor cores
  Dropout dropout;
};
void low_rank(DType dtype, const LowRankArguments& args, cudaStream_t stream);

/// One pair of factors of a product. Where `masked`, the mask of `projection` is applied to this pair's product.
struct ProductPart {
  const void *a, *b;
  int64_t lda, ldb, k;
  int projection;
  bool aligned, masked;
};

/// C [m, n] = sum over parts of op(A) op(B), in one accumulator and in the order of the parts, + bias + residual.
/// Where `sums` is given, its floats are added (unless `first`) and C is stored only by the `last` product of the sum.
struct ProductArguments {
  ProductPart parts[2 * kLoraGroup];
  int count;
  int64_t m, n;
  void* out;
  int64_t ldo;
  const void *bias, *residual;
  int64_t ldr;
  float* sums;  // [m, n]
  bool first, last;
  bool pairs;  // two columns of C and residual are stored at a time
  Dropout dropout;
};

/// How A and B are stored: [m, k] and [n, k] (y), [m, k] and [k, n] (dx), [k, m] and [k, n] (dW).
enum class ProductLayout { kRowsRows, kRowsColumns, kColumnsColumns };

/// The product on tensor cores, for bfloat16 and float16.
void product_16(DType dtype, ProductLayout layout, const ProductArguments& args, cudaStream_t stream);
/// The product by FMA.
void product_f32(ProductLayout layout, const ProductArguments& args, cudaStream_t stream);

/// to [rows, ldt] of S = from, or its transpose, with zeros beyond it.
struct PackArguments {
  const void* from;
  DType from_dtype;
  int64_t from_rows, from_columns, ldf;
  bool transposed;
  void* to;
  int64_t rows, ldt;
};
void pack(DType dtype, const PackArguments& args, cudaStream_t stream);

/// From row parts to sums [rows, lds], times factor, and to the tail [rows, width] of S of a product, times tail_factor
/// more.
struct RowSumArguments {
  const float* parts;
  int64_t panels, rows, width;
  RankGroup groups[kLoraGroup];
  float factors[kLoraGroup], tail_factors[kLoraGroup];
  int count;
  float* sums;  // may be null
  int64_t lds;
  void* tail;
};
void sum_row_parts(DType dtype, const RowSumArguments& args, cudaStream_t stream);

/// to[r * rank_stride + k * k_stride] = factor * sum over chunks of parts[chunk, first + r, k], r < ranks, k < K.
struct ColumnSumArguments {
  const float* parts;
  int64_t chunks, width, first, ranks, K;
  float factor;
  void* to;
  int64_t rank_stride, k_stride;
};
void sum_column_parts(DType dtype, const ColumnSumArguments& args, cudaStream_t stream);

/// parts [chunks, columns] = sums of x [rows, columns] over chunks of rows.
void column_parts(DType dtype, const View<2>& x, int64_t chunk_rows, float* parts, cudaStream_t stream);

/// Calls body(S()) with the type of a 16-bit dtype or float.
template <class F>
void dispatch_lora(DType dtype, F&& body) {
  if (dtype == DType::kFloat32)
    body(float());
  else if (dtype == DType::kBFloat16)
    body(__nv_bfloat16());
  else
    body(__half());
}

}  // namespace longspan::kernels
