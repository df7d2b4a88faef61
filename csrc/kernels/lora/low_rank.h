#pragma once
// The thin products of an adapter: passes over wide rows that meet few columns. Only for the family's CPU sources.
#include "common/context.h"

namespace longspan::kernels {

/// Columns [first, first + rank) of the thin matrices, which see the wide rows through the dropout mask of `seed`.
struct LowRankPart {
  int64_t first, rank;
  uint64_t seed;
};

/// One pass over rows X [rows, width] of dtype S, with T = statistics and D the parts' masks:
///
///   out  = (X . D) F         where there is a factor
///   sums += (X . D)^T [g | 1] where there is a g (the column of ones only when `ones`)
///
/// Both thin products are made while a tile of X is in cache.
struct LowRankPass {
  View<2> x;
  int64_t first_row;  // row of the mask that x's first row is
  double dropout;     // 0: no masks, and then one part with all columns is the fastest
  const LowRankPart* parts;
  int64_t parts_count;
  const void* factor;  // T, element (k, r) of [width, columns] at k * factor_k + r * factor_r; or null
  int64_t factor_k, factor_r;
  void* out;  // T [rows, columns], row stride ld_out
  int64_t ld_out;
  const void* g;  // T [rows, columns], row stride ld_g
  int64_t ld_g;
  bool ones;         // one more column of ones behind g; needs a single part
  bool sums_wanted;  // g may be null when ones is all there is
  void* sums;        // T [low_rank_chunks][width][low_rank_stride]; added to
};

void low_rank_pass_cpu(const LowRankPass& pass, const Context& context);

/// y[rows, width] += D . (g F), F [rank, width] with rows of T; y in T. The adapter's share of a gradient under dropout.
struct LowRankUpdate {
  const void* g;
  int64_t ld_g;
  const void* factor;  // T [rank, width], contiguous
  int64_t rank;
  View<2> y;
  int64_t first_row;
  double dropout;
  uint64_t seed;
};
void low_rank_update_cpu(const LowRankUpdate& update, const Context& context);

/// to(k, r) = scale * sum over chunks of sums[chunk][k][first + r], in order, rounded once; `to` has any strides.
struct LowRankResult {
  const void* sums;
  int64_t chunks, width, stride, first, rank;
  double scale;
  DType statistics;
  void* to;
  DType dtype;
  int64_t to_k, to_r;
};
void low_rank_result_cpu(const LowRankResult& result, const Context& context);

/// Columns of sums: whole vectors of every instruction set. A part's columns start on a vector of their own.
inline constexpr int64_t low_rank_stride(int64_t columns) { return round_up(columns, 16); }

/// Chunks of rows that are summed apart: few when the sums are large. Depends on shapes alone.
inline constexpr int64_t low_rank_chunks(int64_t rows, int64_t columns) {
  const int64_t most = 256 / low_rank_stride(columns) > 2 ? 256 / low_rank_stride(columns) : 2;
  const int64_t some = most < 16 ? most : 16, needed = ceil_div(rows, 64);
  return needed < some ? (needed > 1 ? needed : 1) : some;
}

}  // namespace longspan::kernels
