#pragma once
// The predicate of pattern kSelected on one [query tile x columns] block of scores. Only for per-ISA sources.
#include "attention/tile.h"
#include "pq/score.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {

static_assert(kKeyTile % kCodeGroup == 0 && kCodeGroup % kKeyStep == 0);
inline constexpr int kTileGroups = kKeyTile / kCodeGroup;

/// What all workers of a call with a selection share.
template <class T>
struct SelectedCall {
  CodewordLanes<T> lanes{};

  SelectedCall(const AttentionSpec& spec, const Context& context) {
    if (spec.pattern.kind != PatternKind::kSelected || spec.selection.scorer != Scorer::kAdc) return;
    const int64_t bytes = CodewordLanes<T>::elements(spec.selection.codebook) * int64_t(sizeof(T));
    lanes =
        CodewordLanes<T>::of(spec.selection.codebook, static_cast<T*>(context.workspace.get(context.workspace.self, bytes)));
  }
};

/// One worker's tables of `tiles` query tiles and codes of one key tile.
struct SelectedScratch {
  uint8_t *tables = nullptr, *codes = nullptr;
  int64_t tile_bytes = 0;

  SelectedScratch(Arena& arena, const AttentionSpec& spec, int64_t tiles) {
    if (spec.pattern.kind != PatternKind::kSelected) return;
    tile_bytes = kQueryTile * table_bytes(spec.selection.codebook);
    tables = arena.take<uint8_t>(tiles * tile_bytes);
    codes = arena.take<uint8_t>(spec.selection.codebook.subspaces * kKeyTile);
  }
};

/// Tables of `count` rows of head h from row `first` on.
template <class S, class T = Compute<S>>
void load_tables(const AttentionSpec& spec, const SelectedCall<T>& call, const View<4>& q, int64_t b, int64_t h,
                 int64_t first, int64_t count, uint8_t* tables) {
  const Selection& selection = spec.selection;
  const Codebook& codebook = selection.codebook;
  const int64_t H = q.size[1], W = code_words(codebook.subspaces, codebook.codewords);
  if (selection.scorer == Scorer::kMatch)
    return match_tables(codebook, selection.query_codes + ((b * H + h) * q.size[2] + first) * W, count, tables);
  adc_tables<S>(codebook, call.lanes, h / (H / codebook.groups), row_of<const S>(q, b, h, first), q.stride[2], count,
                q.size[3], tables);
}

/// Codes of the key tile that begins at `begin`, of `keys` keys of row kv.
inline void load_codes(const AttentionSpec& spec, int64_t b, int64_t kv, int64_t kv_heads, int64_t begin, int64_t keys,
                       uint8_t* codes) {
  const Codebook& codebook = spec.selection.codebook;
  const int64_t W = code_words(codebook.subspaces, codebook.codewords);
  for (int g = 0; g < kTileGroups && begin + g * kCodeGroup < keys; ++g) {
    const int64_t at = begin + g * kCodeGroup, left = keys - at;
    spread_codes(codebook, spec.selection.key_codes + ((b * kv_heads + kv) * keys + at) * W,
                 left < kCodeGroup ? left : kCodeGroup, codes + g * codebook.subspaces * kCodeGroup);
  }
}

/// Sets scores of pairs to -inf that are neither near nor selected, or out of reach, and those beyond the last key.
/// `row` is the number of the tile's first row in threshold and cut.
template <class T>
inline void mask_selected(const AttentionSpec& spec, const Bounds& bounds, const TileRows& rows, const Columns& columns,
                          int64_t batch, int64_t key_begin, int64_t keys, int64_t count, int64_t row, const uint8_t* tables,
                          const uint8_t* codes, T* scores) {
  const Codebook& codebook = spec.selection.codebook;
  const int64_t bytes = table_bytes(codebook), group_bytes = codebook.subspaces * kCodeGroup;
  const Layout& k = bounds.keys;
  const int64_t base = (bounds.key_layouts == 1 ? 0 : batch * k.batch_stride) + key_begin;
  alignas(64) int16_t found[kCodeGroup];
  for (int64_t i = 0; i < count; ++i) {
    const RowBounds& at = rows.row[i];
    const int threshold = threshold_at(spec.selection, row + i);
    const int64_t cut = spec.selection.cut[row + i];
    for (int g = columns.first / kCodeGroup * kCodeGroup; g < columns.last; g += kCodeGroup) {
      bool scored = false;
      for (int c = g < columns.first ? columns.first : g; c < columns.last && c < g + kCodeGroup; c += kKeyStep) {
        T* s = scores + i * kScoreStride + c;
        const int64_t key = key_begin + c, left = keys - key;
        const Sight seen = left < kKeyStep ? Sight{Visibility::kPartial, Visibility::kPartial}
                                           : sight(at, bounds.step_range(batch, key / kKeyStep), bounds.sinks);
        if (seen.reach == Visibility::kSkip) {
          for (int j = 0; j < kKeyStep; ++j) s[j] = kMinusInfinity<T>;
          continue;
        }
        const bool all = seen.near == Visibility::kFull || threshold == kKeepsAll;
        if (all && seen.reach == Visibility::kFull) continue;
        if (!all && !scored) {
          group_scores(codebook, tables + i * bytes, codes + g / kCodeGroup * group_bytes, found);
          scored = true;
        }
        const int16_t* score = found + (c - g);
        const bool whole = seen.reach == Visibility::kFull && seen.near == Visibility::kSkip;
        if (whole && (cut <= key || cut >= key + kKeyStep)) {
          const int16_t least = int16_t(cut <= key ? threshold : threshold + 1);
          for (int j = 0; j < kKeyStep; ++j) s[j] = score[j] >= least ? s[j] : kMinusInfinity<T>;
          continue;
        }
        const int32_t *doc = k.doc + base + c, *pos = k.pos + base + c, *flag = k.flag ? k.flag + base + c : nullptr;
        for (int j = 0; j < kKeyStep; ++j) {
          const bool kept = j < left && reachable(at, doc[j], pos[j]) &&
                            (all || near(at, bounds.sinks, pos[j], flag ? flag[j] : 0) || score[j] > threshold ||
                             (score[j] == threshold && key + j >= cut));
          if (!kept) s[j] = kMinusInfinity<T>;
        }
      }
    }
  }
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
