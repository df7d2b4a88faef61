// Attention forward on the CPU; see attention.h for the contract.
#include "attention/online.h"
#include "attention/selected.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {

void attention_listed_fwd(const AttentionSpec& spec, const AttentionTensors& io, const Context& context);

namespace {

template <class S>
void forward(const AttentionSpec& spec, const AttentionTensors& io, const Context& context) {
  using T = Compute<S>;
  const int64_t B = io.q.size[0], H = io.q.size[1], Q = io.q.size[2], D = io.q.size[3];
  const int64_t K = io.k.size[1], N = io.k.size[2], group = H / K;
  const int64_t padded = round_up(D, kLanes<T>);
  const Bounds bounds = build_bounds(spec, B, Q, N, context);
  const int64_t rows_per_head =
      ceil_div(4, group);  // query tiles a head in a task: at least 4 tiles share a packed key tile
  const int64_t tiles = rows_per_head * group;
  const int64_t chunks = ceil_div(bounds.query_tiles, rows_per_head);
  const Scales<T> scales(spec);
  const SelectedCall<T> selected(spec, context);
  const bool selects = spec.pattern.kind == PatternKind::kSelected;

  Arena measure(nullptr);
  FwdScratch<T>(measure, tiles, D);
  SelectedScratch(measure, spec, tiles);
  char* memory =
      static_cast<char*>(context.workspace.get(context.workspace.self, measure.used() * context.parallel.workers));

  parallel_for(context, B * K * chunks, [&](int64_t task, int worker) {
    Arena arena(memory + measure.used() * worker);
    FwdScratch<T> scratch(arena, tiles, D);
    const SelectedScratch selection(arena, spec, tiles);
    const int64_t chunk = chunks - 1 - task / (B * K);  // under causality the last rows cost most: claim them first
    const int64_t b = task % (B * K) / K, kv = task % K;
    const int64_t first_tile = chunk * rows_per_head;
    const int64_t used =
        (bounds.query_tiles - first_tile < rows_per_head ? bounds.query_tiles - first_tile : rows_per_head) * group;
    const auto head = [&](int64_t i) { return kv * group + i % group; };
    const auto tile = [&](int64_t i) { return first_tile + i / group; };
    const auto count = [&](int64_t i) {
      return Q - tile(i) * kQueryTile < kQueryTile ? Q - tile(i) * kQueryTile : int64_t(kQueryTile);
    };

    for (int64_t i = 0; i < used; ++i) {
      copy_rows<T>(row_of<const S>(io.q, b, head(i), tile(i) * kQueryTile), io.q.stride[2], count(i), D, scales.query,
                   scratch.queries + i * kQueryTile * D);
      if (selects)
        load_tables<S>(spec, selected, io.q, b, head(i), tile(i) * kQueryTile, count(i),
                       selection.tables + i * selection.tile_bytes);
      for (int r = 0; r < kQueryTile; ++r) scratch.row_max[i * kQueryTile + r] = kMinusInfinity<T>;
    }
    std::memset(scratch.out, 0, used * kQueryTile * padded * sizeof(T));
    std::memset(scratch.row_sum, 0, used * kQueryTile * sizeof(T));

    for (int64_t kt = 0; kt < bounds.key_tiles; ++kt) {
      int first = kKeyTile, last = 0;
      for (int64_t i = 0; i < used; ++i) {
        const Columns c = visible_columns(bounds, b, head(i), H, tile(i), kt);
        scratch.columns[i] = c;
        if (c.last) first = c.first < first ? c.first : first, last = c.last > last ? c.last : last;
      }
      if (!last) continue;
      const int64_t begin = kt * kKeyTile, keys = N - begin < last ? N - begin : last;
      pack_panels_transposed<T>(row_of<const S>(io.k, b, kv, begin + first), io.k.stride[2], keys - first, D, last - first,
                                scratch.keys);
      pack_panels<T>(row_of<const S>(io.v, b, kv, begin + first), io.v.stride[2], keys - first, D, padded, last - first,
                     scratch.values);
      if (selects) load_codes(spec, b, kv, K, begin, N, selection.codes);
      for (int64_t i = 0; i < used; ++i) {
        const Columns& c = scratch.columns[i];
        if (!c.last) continue;
        const int64_t n = count(i);
        block_gemm<T>(n, c.last - c.first, D, scratch.queries + i * kQueryTile * D, D,
                      {scratch.keys + (c.first - first) * D, D}, scratch.scores + c.first, kScoreStride, false);
        if (spec.softcap > 0) cap_scores<T>(c, n, scales.cap, scratch.scores, nullptr);
        if (c.masked || begin + c.last > N) {
          TileRows rows;
          rows.load(spec.pattern, bounds, b, tile(i) * kQueryTile, n, bounds.shifted(head(i), H));
          if (selects)
            mask_selected<T>(spec, bounds, rows, c, b, begin, N, n, (b * H + head(i)) * Q + tile(i) * kQueryTile,
                             selection.tables + i * selection.tile_bytes, selection.codes, scratch.scores);
          else
            mask_scores<T>(bounds, rows, c, b, begin, N, n, scratch.scores);
        }
        T* out = scratch.out + i * kQueryTile * padded;
        softmax_step<T>(c, n, padded, scratch.scores, out, scratch.row_max + i * kQueryTile,
                        scratch.row_sum + i * kQueryTile);
        // Columns beyond the last key have probability 0 and are left out of the product.
        const int64_t depth = (keys < c.last ? keys : c.last) - c.first;
        block_gemm<T>(n, padded, depth, scratch.scores + c.first, kScoreStride,
                      {scratch.values, last - first, c.first - first}, out, padded, true);
      }
    }

    for (int64_t i = 0; i < used; ++i)
      write_rows<S>(io, b, head(i), tile(i) * kQueryTile, count(i), scratch.out + i * kQueryTile * padded, padded,
                    scratch.row_max + i * kQueryTile, scratch.row_sum + i * kQueryTile);
  });
}

}  // namespace

void attention_fwd(const AttentionSpec& spec, const AttentionTensors& io, const Context& context) {
  if (spec.pattern.kind == PatternKind::kTiles) return attention_listed_fwd(spec, io, context);
  switch (io.q.dtype) {
    case DType::kFloat32: return forward<float>(spec, io, context);
    case DType::kFloat64: return forward<double>(spec, io, context);
    case DType::kBFloat16: return forward<bfloat16>(spec, io, context);
    case DType::kFloat16: return;  // dispatch_cpu.cpp refuses it
  }
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
