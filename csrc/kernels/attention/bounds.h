#pragma once
// Minima and maxima of the token arrays per tile, from which tiles are skipped, taken whole or masked.
#include "attention/attention.h"

namespace longspan::kernels {

struct Bounds {
  Layout queries, keys;  // with arrays filled in where the caller gave none
  int64_t query_layouts = 1, key_layouts = 1;
  int classes = 1;  // 2 when the upper half of the heads is shifted
  int64_t query_tiles = 0, key_tiles = 0, key_steps = 0;
  RowRange* rows = nullptr;   // [query_layouts][classes][query_tiles]
  KeyRange* tiles = nullptr;  // [key_layouts][key_tiles]
  KeyRange* steps = nullptr;  // [key_layouts][key_steps]
  int32_t sinks = 0;

  const RowRange& row_range(int64_t batch, int shifted, int64_t tile) const {
    return rows[((query_layouts == 1 ? 0 : batch) * classes + shifted) * query_tiles + tile];
  }
  const KeyRange& tile_range(int64_t batch, int64_t tile) const {
    return tiles[(key_layouts == 1 ? 0 : batch) * key_tiles + tile];
  }
  const KeyRange& step_range(int64_t batch, int64_t step) const {
    return steps[(key_layouts == 1 ? 0 : batch) * key_steps + step];
  }
  /// The shift class of a head.
  int shifted(int64_t head, int64_t heads) const { return classes == 2 && head >= heads / 2; }
};

/// Builds the bounds for `queries` rows and `keys` keys; O(queries + keys) scratch from the workspace.
Bounds build_bounds(const AttentionSpec& spec, int64_t batch, int64_t queries, int64_t keys, const Context& context);

/// The columns of one key tile that one query tile needs: [first, last) in multiples of kKeyStep (the last may be cut by
/// the end of the keys), and bit i of `masked` set when step i must be masked element by element.
struct Columns {
  int first = 0, last = 0;
  uint32_t masked = 0;
};

Columns visible_columns(const Bounds& bounds, int64_t batch, int64_t head, int64_t heads, int64_t query_tile,
                        int64_t key_tile);

}  // namespace longspan::kernels
