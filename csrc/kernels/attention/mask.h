#pragma once
// Which (query, key) pairs attend: the one truth for all backends.
//
//   visible = reachable and ( near or selected )
//   reachable = doc_q = doc_k >= 0  and  floor <= pos_k <= ceiling
//   near = pos_k >= low  or  pos_k < sinks  or  global
//
// ceiling: pos_q if causal; floor: the model's own window; low: start of the query's group (S2) or window; selected: by the
// codes of query and key (pq/selection.h), never without such a selection.
// Positions count from the start of each document and are arrays, never row indices.
// A second position class changes scores, not this.
#include <climits>
#include <cstdint>

#include "common/types.h"

namespace longspan::kernels {

enum class PatternKind : int8_t { kFull, kShiftedGroups, kWindow, kTiles, kSelected };

/// kShiftedGroups: heads h >= H/2 use groups shifted by group_size/2 (LongLoRA, Chen et al. 2024, section 3.2 and
/// appendix B.2 "separate end groups"). kWindow: `window` keys including the query itself. kTiles: `tiles` lists, for each
/// batch row (or all: tile_batches 1), query head (or key head, or all: tile_heads H, K or 1) and query tile, the key tiles
/// in increasing order, -1 ends a list. kSelected: as kWindow (`window` may be 0, and must be unless causal), and beside it
/// what the call's Selection keeps.
struct Pattern {
  PatternKind kind = PatternKind::kFull;
  bool causal = true;
  int32_t group_size = 0;
  int32_t window = 0;
  int32_t sinks = 0;               // the first positions of each document, visible to all later ones
  int32_t model_window = 0;        // 0 is none; ANDed to every pattern
  int32_t tile_size = 0;           // rows and keys of a listed tile, a multiple of kQueryTile
  const int32_t* tiles = nullptr;  // [tile_batches, tile_heads, query_tiles, tile_slots]
  int64_t tile_batches = 0, tile_heads = 0, query_tiles = 0, tile_slots = 0;
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
  if (p.kind == PatternKind::kSelected) row.low = p.window > 0 ? pos - p.window + 1 : INT_MAX;
  if (p.kind == PatternKind::kShiftedGroups) {
    const int32_t shift = shifted ? p.group_size / 2 : 0;
    row.low = floor_div(pos + shift, p.group_size) * p.group_size - shift;
  }
  return row;
}

LONGSPAN_HD inline bool reachable(const RowBounds& row, int32_t doc, int32_t pos) {
  return row.doc == doc && doc >= 0 && pos >= row.floor && pos <= row.ceiling;
}
LONGSPAN_HD inline bool near(const RowBounds& row, int32_t sinks, int32_t pos, int32_t flag) {
  return pos >= row.low || pos < sinks || row.global || (flag & 1);
}
/// Without a selection.
LONGSPAN_HD inline bool visible(const RowBounds& row, int32_t sinks, int32_t doc, int32_t pos, int32_t flag) {
  return reachable(row, doc, pos) && near(row, sinks, pos, flag);
}

/// Minima and maxima over a run of keys.
struct KeyRange {
  int32_t doc_min, doc_max, pos_min, pos_max;
  int32_t any_global;
};

/// Minima and maxima over a run of query rows. any_far: a row may see keys that are not near: it is global, or selects.
struct RowRange {
  int32_t doc_min, doc_max, floor_min, floor_max, ceiling_min, ceiling_max, low_min, low_max;
  int32_t any_far;
};

enum class Visibility : int8_t { kSkip, kPartial, kFull };

/// How one row sees a run of keys: what it can reach of them, and what of that is near.
struct Sight {
  Visibility reach, near;
};
LONGSPAN_HD inline Sight sight(const RowBounds& row, const KeyRange& k, int32_t sinks) {
  Sight out{Visibility::kPartial, Visibility::kPartial};
  if (row.doc < 0 || row.doc < k.doc_min || row.doc > k.doc_max || k.pos_min > row.ceiling || k.pos_max < row.floor)
    out.reach = Visibility::kSkip;
  else if (k.doc_min == k.doc_max && k.pos_max <= row.ceiling && k.pos_min >= row.floor)
    out.reach = Visibility::kFull;
  if (row.global || k.pos_min >= row.low || k.pos_max < sinks)
    out.near = Visibility::kFull;
  else if (k.pos_max < row.low && k.pos_min >= sinks && !k.any_global)
    out.near = Visibility::kSkip;
  return out;
}

/// kSkip and kFull are exact promises; everything else is kPartial.
LONGSPAN_HD inline Visibility classify(const RowRange& q, const KeyRange& k, int32_t sinks) {
  if (q.doc_max < 0 || k.doc_max < 0 || q.doc_max < k.doc_min || q.doc_min > k.doc_max) return Visibility::kSkip;
  if (k.pos_min > q.ceiling_max || k.pos_max < q.floor_min) return Visibility::kSkip;
  const bool close = k.pos_max >= q.low_min;
  if (!close && k.pos_min >= sinks && !q.any_far && !k.any_global) return Visibility::kSkip;
  const bool same_doc = q.doc_min == q.doc_max && k.doc_min == k.doc_max && q.doc_min == k.doc_min;
  const bool inside = k.pos_max <= q.ceiling_min && k.pos_min >= q.floor_max;
  if (same_doc && inside && (k.pos_min >= q.low_max || k.pos_max < sinks)) return Visibility::kFull;
  return Visibility::kPartial;
}

/// The list [tile_slots] of the query row `row` of `head` (of `heads`) in batch row `batch`.
LONGSPAN_HD inline const int32_t* tile_list(const Pattern& p, int64_t batch, int64_t head, int64_t heads, int64_t row) {
  const int64_t b = p.tile_batches == 1 ? 0 : batch, h = head / (heads / p.tile_heads);
  return p.tiles + ((b * p.tile_heads + h) * p.query_tiles + row / p.tile_size) * p.tile_slots;
}

/// Whether the tile of key `key` is listed for the query row `row` of `head`.
LONGSPAN_HD inline bool tile_listed(const Pattern& p, int64_t batch, int64_t head, int64_t heads, int64_t row, int64_t key) {
  if (p.kind != PatternKind::kTiles) return true;
  const int64_t wanted = key / p.tile_size;
  const int32_t* slots = tile_list(p, batch, head, heads, row);
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
