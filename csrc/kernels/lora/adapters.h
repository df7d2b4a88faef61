#pragma once
// What the forward and the backward on the CPU share: the adapters side by side, and rows of the input as they are used.
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/cast.h"
#include "common/steps.h"
#include "lora/lora.h"
#include "lora/low_rank.h"

namespace longspan::kernels {

inline char* lora_row(const View<2>& x, int64_t row) {
  return static_cast<char*>(x.data) + row * x.stride[0] * element_size(x.dtype);
}
inline View<2> lora_rows(const View<2>& x, int64_t first, int64_t count) {
  return {lora_row(x, first), x.dtype, {count, x.size[1]}, {x.stride[0], 1}};
}
inline View<2> lora_matrix(void* data, DType dtype, int64_t rows, int64_t columns) {
  return {data, dtype, {rows, columns}, {columns, 1}};
}
inline void* lora_scratch(const Context& context, int64_t count, DType dtype) {
  return context.workspace.get(context.workspace.self, std::max<int64_t>(count, 1) * element_size(dtype));
}

/// The adapters of one call; their columns of s stand one after the other.
struct LoraAdapters {
  const LoraInput& in;
  const LoraProjection* projections;
  int64_t count, first[kLoraGroup] = {}, rank[kLoraGroup] = {}, columns = 0, parts_count = 0;
  DType statistics;
  LowRankPart parts[kLoraGroup];  // of a pass over z: one for all without dropout

  LoraAdapters(const LoraInput& input, const LoraProjection* given, int64_t projections_count)
      : in(input), projections(given), count(projections_count), statistics(statistics_dtype(input.x.dtype)) {
    if (input.x.dtype == DType::kFloat16)
      throw std::invalid_argument("lora_linear on the CPU has no float16; use bfloat16 or float32");
    if (count < 1 || count > kLoraGroup)
      throw std::invalid_argument("lora_linear: " + std::to_string(count) + " projections; allowed: 1 to " +
                                  std::to_string(kLoraGroup));
    for (int64_t i = 0; i < count; ++i) {
      rank[i] = given[i].lora_a.data ? given[i].lora_a.size[0] : 0;
      if (rank[i] > kLoraRank)
        throw std::invalid_argument("lora_linear: the rank is " + std::to_string(rank[i]) + "; allowed: at most " +
                                    std::to_string(kLoraRank));
      first[i] = columns, columns += rank[i];
      if (rank[i] && in.dropout > 0) parts[parts_count++] = {first[i], rank[i], uint64_t(in.seeds[i])};
    }
    if (in.dropout == 0 && columns) parts[0] = {0, columns, 0}, parts_count = 1;
  }

  /// [columns, C] in statistics: the A matrices one below the other.
  void* factors(const Context& context) const {
    const int64_t C = in.x.size[1];
    void* out = lora_scratch(context, columns * C, statistics);
    const View<2> all = lora_matrix(out, statistics, columns, C);
    for (int64_t i = 0; i < count; ++i)
      if (rank[i]) cast_cpu(projections[i].lora_a, 1, lora_rows(all, first[i], rank[i]), context);
    return out;
  }

  /// [N, rank + extra] in statistics: scaling B, and room for more columns.
  View<2> scaled_b(int64_t i, int64_t extra, const Context& context) const {
    const int64_t N = projections[i].weight.size[0];
    View<2> out = lora_matrix(lora_scratch(context, N * (rank[i] + extra), statistics), statistics, N, rank[i] + extra);
    View<2> part = out;
    part.size[1] = rank[i];
    if (rank[i]) cast_cpu(projections[i].lora_b, projections[i].scaling, part, context);
    return out;
  }

  /// The columns of projection i of s, or of ds.
  View<2> columns_of(const View<2>& x, int64_t i) const {
    View<2> out = x;
    out.data = static_cast<char*>(x.data) + first[i] * element_size(statistics), out.size[1] = rank[i];
    return out;
  }

  /// Statistics of row `row`.
  void* at(void* rows, int64_t row) const {
    return rows ? static_cast<char*>(rows) + row * element_size(statistics) : nullptr;
  }

  /// Rows [t0, t0 + rows) of z: those of x, or normed into `panel`.
  View<2> z(int64_t t0, int64_t rows, void* panel, void* rstd, void* mean, const Context& context) const {
    const View<2> x = lora_rows(in.x, t0, rows);
    if (!in.normed) return x;
    const View<2> out = lora_matrix(panel, in.x.dtype, rows, in.x.size[1]);
    norm_fwd_cpu(in.norm, {x, {}, in.norm_weight, in.norm_bias, in.norm_dtype, {}, out, rstd, mean}, context);
    return out;
  }
};

/// Rows of one panel: all where nothing has to be stored for them, else equal panels of at most kLoraPanel.
inline int64_t lora_panel_rows(int64_t rows, bool all) {
  return all || rows <= kLoraPanel ? std::max<int64_t>(rows, 1) : round_up(ceil_div(rows, ceil_div(rows, kLoraPanel)), 64);
}

}  // namespace longspan::kernels
