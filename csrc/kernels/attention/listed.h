#pragma once
// Pattern kTiles on the CPU: the key blocks that a query tile's list names, four at a time side by side. Only for per-ISA
// sources.
#include <algorithm>

#include "attention/tile.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {

inline constexpr int kListBlock = kQueryTile;              // keys of a block: lists are of multiples of it
inline constexpr int kListBlocks = kKeyTile / kListBlock;  // that are multiplied together
inline constexpr int kBlockSteps = kListBlock / kKeyStep;

/// Up to kListBlocks blocks of keys: block i has its first key at begin[i], count[i] of them, and takes columns
/// [i * kListBlock, ...) of a tile of scores; steps[i] is its part of Columns::masked.
struct KeyBlocks {
  int size = 0;
  int64_t begin[kListBlocks], count[kListBlocks];
  uint32_t steps[kListBlocks];

  int columns() const { return size * kListBlock; }
};

/// Runs `f(KeyBlocks)` over the blocks of keys [first, last) that query tile `tile` of `head` has listed and may see.
template <class F>
void each_blocks(const Pattern& pattern, const Bounds& bounds, int64_t batch, int64_t head, int64_t heads, int64_t tile,
                 int64_t first, int64_t last, F&& f) {
  const int32_t* list = tile_list(pattern, batch, head, heads, tile * kQueryTile);
  const RowRange& rows = bounds.row_range(batch, 0, tile);
  KeyBlocks blocks;
  const auto from = std::lower_bound(list, list + pattern.tile_slots, first / pattern.tile_size, [](int32_t a, int64_t b) {
    return a >= 0 && a < b;  // -1 ends the list: behind all others
  });
  for (const int32_t* slot = from; slot < list + pattern.tile_slots && *slot >= 0; ++slot) {
    const int64_t begin = int64_t(*slot) * pattern.tile_size, end = std::min(begin + pattern.tile_size, last);
    if (begin >= last) break;
    for (int64_t key = std::max(begin, first); key < end; key += kListBlock) {
      uint32_t masked = 0, live = 0;
      for (int i = 0; i < kBlockSteps && key + i * kKeyStep < end; ++i) {
        const Visibility step = classify(rows, bounds.step_range(batch, key / kKeyStep + i), bounds.sinks);
        live |= uint32_t(step != Visibility::kSkip);
        masked |= uint32_t(step != Visibility::kFull) << i;
      }
      if (!live) continue;
      const int64_t count = std::min<int64_t>(kListBlock, end - key);
      for (int i = int(ceil_div(count, kKeyStep)); i < kBlockSteps; ++i) masked |= 1u << i;  // there is no such key
      blocks.begin[blocks.size] = key, blocks.count[blocks.size] = count, blocks.steps[blocks.size] = masked;
      if (++blocks.size == kListBlocks) f(blocks), blocks.size = 0;
    }
  }
  if (blocks.size) f(blocks);
}

/// Masks the scores of `count` rows where blocks are not seen whole.
template <class T>
void mask_blocks(const Bounds& bounds, const TileRows& rows, const KeyBlocks& blocks, int64_t batch, int64_t keys,
                 int64_t count, T* scores) {
  for (int i = 0; i < blocks.size; ++i) {
    if (!blocks.steps[i] && blocks.begin[i] + kListBlock <= keys) continue;
    const int first = i * kListBlock;
    mask_scores<T>(bounds, rows, {first, first + kListBlock, blocks.steps[i] << (first / kKeyStep)}, batch,
                   blocks.begin[i] - first, keys, count, scores);
  }
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
