#pragma once
// Which (query, key) pairs attend: the one truth for all backends.
//
//   visible = doc_q = doc_k >= 0  and  floor <= pos_k <= ceiling  and  ( pos_k >= low  or  pos_k < sinks  or  global )
//
// ceiling: pos_q if causal; floor: the model's own window; low: start of the query's group (S2) or window.
// Positions count from the start of each document and are arrays, never row indices.
// A PQ predicate joins as a further factor of `low or sinks or global`; a second position class changes scores, not this.
#include <climits>
#include <cstdint>

#include "common/types.h"

namespace longspan::kernels {

enum class PatternKind : int8_t { kFull, kShiftedGroups, kWindow, kTiles };

/// kShiftedGroups: heads h >= H/2 use groups shifted by group_size/2 (LongLoRA, Chen et al. 2024, section 3.2 and
/// appendix B.2 "separate end groups"). kWindow: `window` keys including the query itself. kTiles: `tiles` lists, for
/// each head (or for all when tile_heads is 1) and query tile, the key tiles in increasing order, -1 ends a list.
struct Pattern {
  PatternKind kind = PatternKind::kFull;
  bool causal = true;
  int32_t group_size = 0;
  int32_t window = 0;
  int32_t sinks = 0;               // the first positions of each document, visible to all later ones
  int32_t model_window = 0;        // 0 is none; ANDed to every pattern
  int32_t tile_size = 0;           // rows and keys of a listed tile, a multiple of kKeyTile
  const int32_t* tiles = nullptr;  // [tile_heads, query_tiles, tile_slots]
  int64_t tile_heads = 0, query_tiles = 0, tile_slots = 0;
};

/// Token arrays of length `length` per batch row; batch_stride 0 shares one row. Null data means one document,
/// positions 0, 1, 2, ... and no global tokens.
struct Layout {
  const int32_t* doc = nullptr;  // -1 is padding: sees nothing, is seen by nothing
  const int32_t* pos = nullptr;
  const int32_t* flag = nullptr;  // bit 0: global token, exempt from group and window
  int64_t batch_stride = 0;
};

inline constexpr int kQueryTile = 64;  // rows that are classified and multiplied together
inline constexpr int kKeyTile = 256;   // keys packed together
inline constexpr int kKeyStep = 32;    // keys classified together inside a partial tile

/// What one query row may see, given its document.
struct RowBounds {
  int32_t doc, floor, ceiling, low;
  bool global;
};

LONGSPAN_HD inline int32_t floor_div(int32_t a, int32_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

/// `shifted` tells whether the head is in the shifted half.
LONGSPAN_HD inline RowBounds row_bounds(const Pattern& p, int32_t doc, int32_t pos, int32_t flag, bool shifted) {
  RowBounds row{doc, INT_MIN, p.causal ? pos : INT_MAX, INT_MIN, (flag & 1) != 0};
  if (p.model_window > 0) row.floor = pos - p.model_window + 1;
  if (p.kind == PatternKind::kWindow) row.low = pos - p.window + 1;
  if (p.kind == PatternKind::kShiftedGroups) {
    const int32_t shift = shifted ? p.group_size / 2 : 0;
    row.low = floor_div(pos + shift, p.group_size) * p.group_size - shift;
  }
  return row;
}

LONGSPAN_HD inline bool visible(const RowBounds& row, int32_t sinks, int32_t doc, int32_t pos, int32_t flag) {
  return row.doc == doc && doc >= 0 && pos >= row.floor && pos <= row.ceiling &&
         (pos >= row.low || pos < sinks || row.global || (flag & 1));
}

/// Minima and maxima over a run of keys.
struct KeyRange {
  int32_t doc_min, doc_max, pos_min, pos_max;
  int32_t any_global;
};

/// Minima and maxima over a run of query rows.
struct RowRange {
  int32_t doc_min, doc_max, floor_min, floor_max, ceiling_min, ceiling_max, low_min, low_max;
  int32_t any_global;
};

enum class Visibility : int8_t { kSkip, kPartial, kFull };

/// kSkip and kFull are exact promises; everything else is kPartial.
LONGSPAN_HD inline Visibility classify(const RowRange& q, const KeyRange& k, int32_t sinks) {
  if (q.doc_max < 0 || k.doc_max < 0 || q.doc_max < k.doc_min || q.doc_min > k.doc_max) return Visibility::kSkip;
  if (k.pos_min > q.ceiling_max || k.pos_max < q.floor_min) return Visibility::kSkip;
  const bool near = k.pos_max >= q.low_min;
  if (!near && k.pos_min >= sinks && !q.any_global && !k.any_global) return Visibility::kSkip;
  const bool same_doc = q.doc_min == q.doc_max && k.doc_min == k.doc_max && q.doc_min == k.doc_min;
  const bool inside = k.pos_max <= q.ceiling_min && k.pos_min >= q.floor_max;
  if (same_doc && inside && (k.pos_min >= q.low_max || k.pos_max < sinks)) return Visibility::kFull;
  return Visibility::kPartial;
}

/// Whether the tile of key `key` is listed for the query row `row` of `head`.
LONGSPAN_HD inline bool tile_listed(const Pattern& p, int64_t head, int64_t row, int64_t key) {
  if (p.kind != PatternKind::kTiles) return true;
  const int64_t wanted = key / p.tile_size;
  const int64_t list = (p.tile_heads == 1 ? 0 : head) * p.query_tiles + row / p.tile_size;
  const int32_t* slots = p.tiles + list * p.tile_slots;
  int64_t low = 0, high = p.tile_slots;  // first slot that is >= wanted or the end mark
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (slots[middle] >= 0 && slots[middle] < wanted)
      low = middle + 1;
    else
      high = middle;
  }
  return low < p.tile_slots && slots[low] == wanted;
}

}  // namespace longspan::kernels
