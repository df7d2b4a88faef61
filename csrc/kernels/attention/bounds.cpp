#include "attention/bounds.h"

#include <algorithm>

namespace longspan::kernels {
namespace {

template <class T>
T* scratch(const Context& context, int64_t count) {
  return static_cast<T*>(context.workspace.get(context.workspace.self, count * int64_t(sizeof(T))));
}

Layout filled(const Layout& given, int64_t length, const Context& context) {
  if (given.doc) return given;
  auto* doc = scratch<int32_t>(context, length);
  auto* pos = scratch<int32_t>(context, length);
  for (int64_t i = 0; i < length; ++i) doc[i] = 0, pos[i] = int32_t(i);
  return {doc, pos, nullptr, 0};
}

KeyRange key_range(const Layout& keys, int64_t begin, int64_t end) {
  KeyRange out{INT_MAX, INT_MIN, INT_MAX, INT_MIN, false};
  for (int64_t i = begin; i < end; ++i) {
    out.doc_min = std::min(out.doc_min, keys.doc[i]);
    out.doc_max = std::max(out.doc_max, keys.doc[i]);
    out.pos_min = std::min(out.pos_min, keys.pos[i]);
    out.pos_max = std::max(out.pos_max, keys.pos[i]);
    out.any_global |= keys.flag && (keys.flag[i] & 1);
  }
  return out;
}

RowRange row_range(const Pattern& pattern, const Layout& queries, int64_t begin, int64_t end, bool shifted) {
  RowRange out{INT_MAX, INT_MIN, INT_MAX, INT_MIN, INT_MAX, INT_MIN, INT_MAX, INT_MIN, false};
  for (int64_t i = begin; i < end; ++i) {
    const int32_t flag = queries.flag ? queries.flag[i] : 0;
    const RowBounds row = row_bounds(pattern, queries.doc[i], queries.pos[i], flag, shifted);
    out.doc_min = std::min(out.doc_min, row.doc), out.doc_max = std::max(out.doc_max, row.doc);
    out.floor_min = std::min(out.floor_min, row.floor), out.floor_max = std::max(out.floor_max, row.floor);
    out.ceiling_min = std::min(out.ceiling_min, row.ceiling), out.ceiling_max = std::max(out.ceiling_max, row.ceiling);
    out.low_min = std::min(out.low_min, row.low), out.low_max = std::max(out.low_max, row.low);
    out.any_far |= row.global || pattern.kind == PatternKind::kSelected;
  }
  return out;
}

Layout of_batch(const Layout& layout, int64_t batch) {
  const int64_t offset = batch * layout.batch_stride;
  return {layout.doc + offset, layout.pos + offset, layout.flag ? layout.flag + offset : nullptr, 0};
}

}  // namespace

Bounds build_bounds(const AttentionSpec& spec, int64_t batch, int64_t queries, int64_t keys, const Context& context) {
  Bounds out;
  out.queries = filled(spec.queries, queries, context);
  out.keys = filled(spec.keys, keys, context);
  out.query_layouts = out.queries.batch_stride ? batch : 1;
  out.key_layouts = out.keys.batch_stride ? batch : 1;
  out.classes = spec.pattern.kind == PatternKind::kShiftedGroups ? 2 : 1;
  out.query_tiles = ceil_div(queries, kQueryTile);
  out.key_tiles = ceil_div(keys, kKeyTile);
  out.key_steps = ceil_div(keys, kKeyStep);
  out.sinks = spec.pattern.sinks;
  out.rows = scratch<RowRange>(context, out.query_layouts * out.classes * out.query_tiles);
  out.tiles = scratch<KeyRange>(context, out.key_layouts * out.key_tiles);
  out.steps = scratch<KeyRange>(context, out.key_layouts * out.key_steps);
  for (int64_t b = 0; b < out.query_layouts; ++b)
    for (int c = 0; c < out.classes; ++c)
      for (int64_t t = 0; t < out.query_tiles; ++t)
        out.rows[(b * out.classes + c) * out.query_tiles + t] =
            row_range(spec.pattern, of_batch(out.queries, b), t * kQueryTile,
                      std::min<int64_t>(queries, (t + 1) * kQueryTile), c == 1);
  for (int64_t b = 0; b < out.key_layouts; ++b) {
    const Layout row = of_batch(out.keys, b);
    for (int64_t t = 0; t < out.key_tiles; ++t)
      out.tiles[b * out.key_tiles + t] = key_range(row, t * kKeyTile, std::min<int64_t>(keys, (t + 1) * kKeyTile));
    for (int64_t t = 0; t < out.key_steps; ++t)
      out.steps[b * out.key_steps + t] = key_range(row, t * kKeyStep, std::min<int64_t>(keys, (t + 1) * kKeyStep));
  }
  return out;
}

Columns visible_columns(const Bounds& bounds, int64_t batch, int64_t head, int64_t heads, int64_t query_tile,
                        int64_t key_tile) {
  const RowRange& rows = bounds.row_range(batch, bounds.shifted(head, heads), query_tile);
  const Visibility whole = classify(rows, bounds.tile_range(batch, key_tile), bounds.sinks);
  if (whole == Visibility::kSkip) return {};
  const int64_t begin = key_tile * (kKeyTile / kKeyStep);
  const int steps = int(std::min<int64_t>(kKeyTile / kKeyStep, bounds.key_steps - begin));
  if (whole == Visibility::kFull) return {0, steps * kKeyStep, 0};
  Columns out{kKeyTile, 0, 0};
  for (int i = 0; i < steps; ++i) {
    const Visibility step = classify(rows, bounds.step_range(batch, begin + i), bounds.sinks);
    if (step != Visibility::kSkip) out.first = std::min(out.first, i * kKeyStep), out.last = (i + 1) * kKeyStep;
    if (step != Visibility::kFull) out.masked |= 1u << i;  // a skipped step between two others is masked away
  }
  return out.last == 0 ? Columns{} : out;
}

int64_t attention_visible_pairs(const AttentionSpec& spec, int64_t batch, int64_t heads, int64_t queries, int64_t keys) {
  int64_t count = 0;
  const auto at = [](const Layout& l, const int32_t* data, int64_t b, int64_t i, int64_t otherwise) {
    return data ? data[b * l.batch_stride + i] : int32_t(otherwise);
  };
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t t = 0; t < queries; ++t) {
        const Layout &q = spec.queries, &k = spec.keys;
        const RowBounds row =
            row_bounds(spec.pattern, at(q, q.doc, b, t, 0), at(q, q.pos, b, t, t), at(q, q.flag, b, t, 0), h >= heads / 2);
        for (int64_t s = 0; s < keys; ++s)
          count += visible(row, spec.pattern.sinks, at(k, k.doc, b, s, 0), at(k, k.pos, b, s, s), at(k, k.flag, b, s, 0)) &&
                   tile_listed(spec.pattern, b, h, heads, t, s);
      }
  return count;
}

}  // namespace longspan::kernels
