#pragma once
// What the CUDA kernels of attention share: their one parameter, and which key tiles a query tile visits.
#include "attention/attention.h"
#include "common/simt.h"
#include "pq/score.cuh"

namespace longspan::kernels {

/// A [batch, head, row, D] array on the device; strides in elements, D contiguous.
struct DeviceArray {
  void* data = nullptr;
  int64_t batch = 0, head = 0, row = 0;

  template <class T>
  SIMT_DEVICE T* at(int b, int h) const {
    return static_cast<T*>(data) + b * batch + h * head;
  }
};

inline constexpr float kLog2e = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;
inline constexpr int kRun = 32;  // tokens whose minima and maxima are kept together

/// Minima and maxima of the token arrays per run, written by the prepare kernel.
struct DeviceRanges {
  RowRange* rows = nullptr;  // [query layouts][classes][query_runs]
  KeyRange* keys = nullptr;  // [key layouts][key_runs]
  int classes = 1;           // 2 when the upper half of the heads is shifted
  int query_runs = 0, key_runs = 0;
};

/// The parameter of every attention kernel, passed by value. Statistics are [batch, head, row], contiguous.
struct AttentionArguments {
  DeviceArray q, k, v, out, dout, dq, dk, dv;
  float* lse = nullptr;
  const float* dlse = nullptr;
  float* lse_log2 = nullptr;  // lse in base 2, +inf where nothing is visible: 2^(z - lse) is then 0
  float* delta = nullptr;     // sum_d dout out - dlse
  int batch = 0, heads = 0, key_heads = 0, queries = 0, keys = 0, D = 0;
  float scale = 0;
  // In the exponent, base 2: z = raw * score_factor, or softcap * tanh(raw * score_factor) when softcap is not 0.
  float score_factor = 0, softcap = 0;
  Pattern pattern;
  Layout query_layout, key_layout;
  DeviceRanges ranges;
  DeviceSelection selection;              // of pattern kSelected
  const unsigned char* tables = nullptr;  // its scores: [batch, head, row, table]
};

/// Where one block works: which query tile (or key tile), head and batch row.
struct BlockPlace {
  int tile, head, batch;
};

/// blockIdx.x enumerates tiles fastest, so that neighbours share a head's keys in the L2 cache.
SIMT_DEVICE BlockPlace block_place(int tiles, int heads) {
  const int index = int(blockIdx.x);
  return {index % tiles, index / tiles % heads, index / tiles / heads};
}

SIMT_DEVICE int32_t token_doc(const Layout& layout, int batch, int i) {
  return layout.doc ? layout.doc[batch * layout.batch_stride + i] : 0;
}
SIMT_DEVICE int32_t token_pos(const Layout& layout, int batch, int i) {
  return layout.doc ? layout.pos[batch * layout.batch_stride + i] : i;
}
SIMT_DEVICE int32_t token_flag(const Layout& layout, int batch, int i) {
  return layout.flag ? layout.flag[batch * layout.batch_stride + i] : 0;
}

SIMT_DEVICE bool has_softcap(const AttentionArguments& a) { return a.softcap > 0; }

/// The score of a raw product, base 2.
SIMT_DEVICE float score_of(const AttentionArguments& a, float raw) {
  const float z = raw * a.score_factor;
  return has_softcap(a) ? a.softcap * tanhf(z) : z;
}
/// One element of the backward: from a raw product and dp to p = 2^(z - lse) and ds = p (dp - delta) dz/draw, without scale.
template <bool Capped>
SIMT_DEVICE void differentiate(const AttentionArguments& a, float& p, float& ds, float lse, float delta) {
  if constexpr (Capped) {
    const float t = tanhf(p * a.score_factor);
    p = ptx::ex2(a.softcap * t - lse);
    ds = p * ((ds - delta) * (1.f - t * t));
  } else {
    p = ptx::ex2(fmaf(p, a.score_factor, -lse));
    ds = p * (ds - delta);
  }
}

SIMT_DEVICE bool is_shifted(const AttentionArguments& a, int head) { return a.ranges.classes == 2 && head >= a.heads / 2; }

SIMT_DEVICE RowBounds row_bounds_of(const Pattern& pattern, const Layout& layout, int batch, int row, bool shifted) {
  return row_bounds(pattern, token_doc(layout, batch, row), token_pos(layout, batch, row), token_flag(layout, batch, row),
                    shifted);
}
SIMT_DEVICE RowBounds row_bounds_of(const AttentionArguments& a, int batch, int row, bool shifted) {
  return row_bounds_of(a.pattern, a.query_layout, batch, row, shifted);
}

SIMT_DEVICE bool key_visible(int sinks, const Layout& layout, const RowBounds& row, int batch, int key) {
  return visible(row, sinks, token_doc(layout, batch, key), token_pos(layout, batch, key), token_flag(layout, batch, key));
}
SIMT_DEVICE bool key_visible(const AttentionArguments& a, const RowBounds& row, int batch, int key) {
  return key_visible(a.pattern.sinks, a.key_layout, row, batch, key);
}

/// Whether a key that a row may reach is kept for its codes.
SIMT_DEVICE bool key_selected(const AttentionArguments& a, int batch, int head, int row, int key) {
  const DeviceSelection& s = a.selection;
  const int64_t at = (int64_t(batch) * a.heads + head) * a.queries + row;
  const int threshold = s.threshold_at(at);
  const int64_t place = int64_t(batch) * a.key_heads + head / (a.heads / a.key_heads);
  const int score =
      score_of_codes(s, a.tables + at * (s.book.M << s.book.bits), s.key_codes + (place * a.keys + key) * s.book.W);
  return score > threshold || (score == threshold && (simt::mutant(210) || key >= s.cut[at]));
}

/// Whether a row sees a key, by its pattern and, where the kernel `Selects`, by its codes.
template <bool Selects>
SIMT_DEVICE bool pair_visible(const AttentionArguments& a, const Layout& keys, const RowBounds& bounds, int layout,
                              int batch, int head, int row, int key) {
  if constexpr (!Selects) return key_visible(a.pattern.sinks, keys, bounds, layout, key);
  if (!reachable(bounds, token_doc(keys, layout, key), token_pos(keys, layout, key))) return false;
  return near(bounds, a.pattern.sinks, token_pos(keys, layout, key), token_flag(keys, layout, key)) ||
         (a.pattern.kind == PatternKind::kSelected && !simt::mutant(211) && key_selected(a, batch, head, row, key));
}

SIMT_DEVICE bool tile_listed(const AttentionArguments& a, int batch, int head, int row, int key) {
  return tile_listed(a.pattern, batch, head, a.heads, row, key);
}

/// The layout of one batch row, to be read as row 0.
SIMT_DEVICE Layout layout_of_row(const Layout& layout, int batch) {
  if (!layout.doc) return {};
  const int64_t offset = batch * layout.batch_stride;
  return {layout.doc + offset, layout.pos + offset, layout.flag ? layout.flag + offset : nullptr, 0};
}

SIMT_DEVICE KeyRange merge(const KeyRange& a, const KeyRange& b) {
  return {min(a.doc_min, b.doc_min), max(a.doc_max, b.doc_max), min(a.pos_min, b.pos_min), max(a.pos_max, b.pos_max),
          a.any_global || b.any_global};
}
SIMT_DEVICE RowRange merge(const RowRange& a, const RowRange& b) {
  return {min(a.doc_min, b.doc_min),     max(a.doc_max, b.doc_max),         min(a.floor_min, b.floor_min),
          max(a.floor_max, b.floor_max), min(a.ceiling_min, b.ceiling_min), max(a.ceiling_max, b.ceiling_max),
          min(a.low_min, b.low_min),     max(a.low_max, b.low_max),         a.any_far || b.any_far};
}

/// The range of rows or keys [begin, begin + count) from the runs that cover it; promises about them hold for a part too.
template <class Range>
SIMT_DEVICE Range range_of(const Range* runs, int run_count, int begin, int count) {
  Range out = runs[begin / kRun];
  for (int i = begin / kRun + 1; i * kRun < begin + count && i < run_count; ++i) out = merge(out, runs[i]);
  return out;
}

SIMT_DEVICE const RowRange* row_runs(const AttentionArguments& a, int batch, int head) {
  const int layout = a.query_layout.batch_stride ? batch : 0;
  return a.ranges.rows + (int64_t(layout) * a.ranges.classes + is_shifted(a, head)) * a.ranges.query_runs;
}
SIMT_DEVICE const KeyRange* key_runs(const AttentionArguments& a, int batch) {
  return a.ranges.keys + int64_t(a.key_layout.batch_stride ? batch : 0) * a.ranges.key_runs;
}

/// A tile to visit; index -1 is the end.
struct TileVisit {
  int index;
  bool masked;  // element by element
};

/// Walks the tiles of one side that are not skipped, in increasing order. All lanes of a warp classify 32 tiles at a time,
/// so long runs of skipped tiles cost one vote. `Classify(tile)` must give the same answers in every warp of the block.
class TileWalk {
 public:
  SIMT_DEVICE explicit TileWalk(int tiles) : tiles_(tiles) {}

  template <class Classify>
  SIMT_DEVICE TileVisit next(Classify&& classify) {
    while (live_ == 0) {
      base_ += 32;
      if (base_ >= tiles_) return {-1, false};
      const int tile = base_ + int(threadIdx.x & 31);
      const Visibility visibility = tile < tiles_ ? classify(tile) : Visibility::kSkip;
      live_ = __ballot_sync(~0u, visibility != Visibility::kSkip);
      full_ = __ballot_sync(~0u, visibility == Visibility::kFull);
    }
    const int bit = __ffs(int(live_)) - 1;
    live_ &= live_ - 1;
    return {base_ + bit, (full_ >> bit & 1) == 0};
  }

 private:
  int tiles_;
  int base_ = -32;
  uint32_t live_ = 0, full_ = 0;
};

}  // namespace longspan::kernels
