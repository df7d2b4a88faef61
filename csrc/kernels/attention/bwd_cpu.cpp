// Attention backward on the CPU; see attention.h for the contract.
//
// Scores are cut into blocks of kBlock query rows x kKeyTile keys. Block (query j, key i) lies on diagonal j - i; the
// blocks of one diagonal (modulo the block count) touch different query rows and different key rows, so they run in
// parallel and add straight into dq, dk and dv. Diagonals follow each other in a fixed order.
#include "attention/gradient.h"
#include "attention/selected.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {

void attention_listed_bwd(const AttentionSpec& spec, const AttentionTensors& io, const AttentionGradients& grads,
                          const Context& context);

namespace {

inline constexpr int kBlockTiles = kKeyTile / kQueryTile;

template <class T>
struct BwdScratch {
  T *keys_t, *values_t, *keys, *queries, *query_panels, *dout, *dout_panels;
  T *probabilities, *dscores, *slope, *dq, *dk, *dv;
  Columns* columns;

  BwdScratch(Arena& arena, int64_t tiles, int64_t dim, bool softcap) {
    const int64_t padded = round_up(dim, kLanes<T>);
    keys_t = arena.take<T>(kKeyTile * dim);
    values_t = arena.take<T>(kKeyTile * dim);
    keys = arena.take<T>(kKeyTile * padded);
    queries = arena.take<T>(kQueryTile * dim);
    query_panels = arena.take<T>(kQueryTile * padded);
    dout = arena.take<T>(kQueryTile * dim);
    dout_panels = arena.take<T>(kQueryTile * padded);
    probabilities = arena.take<T>(kQueryTile * kScoreStride);
    dscores = arena.take<T>(kQueryTile * kScoreStride);
    slope = softcap ? arena.take<T>(kQueryTile * kScoreStride) : nullptr;
    dq = arena.take<T>(kQueryTile * padded);
    dk = arena.take<T>(kKeyTile * padded);
    dv = arena.take<T>(kKeyTile * padded);
    columns = arena.take<Columns>(tiles);
  }
};

template <class S>
struct Backward {
  using T = Compute<S>;
  const AttentionSpec& spec;
  const AttentionTensors& io;
  const AttentionGradients& grads;
  const Context& context;
  const int64_t B = io.q.size[0], H = io.q.size[1], Q = io.q.size[2], D = io.q.size[3];
  const int64_t K = io.k.size[1], N = io.k.size[2], group = H / K, padded = round_up(D, kLanes<T>);
  const Bounds bounds = build_bounds(spec, B, Q, N, context);
  const Scales<T> scales{spec};
  const SelectedCall<T> selected{spec, context};
  const bool selects = spec.pattern.kind == PatternKind::kSelected;
  T* delta = static_cast<T*>(context.workspace.get(context.workspace.self, B * H * Q * int64_t(sizeof(T))));
  Accumulator<T> dq = Accumulator<T>::template of<S>(grads.dq, context);
  Accumulator<T> dk = Accumulator<T>::template of<S>(grads.dk, context);
  Accumulator<T> dv = Accumulator<T>::template of<S>(grads.dv, context);

  // Tables of all rows where they are no larger than the queries: a tile of rows meets every tile of keys.
  const int64_t row_bytes = selects ? table_bytes(spec.selection.codebook) : 0;
  uint8_t* const tables = row_bytes > 0 && row_bytes <= D* int64_t(sizeof(T)) ? all_tables() : nullptr;

  uint8_t* all_tables() const {
    auto* out = static_cast<uint8_t*>(context.workspace.get(context.workspace.self, B * H * Q * row_bytes));
    parallel_for(context, B * H * bounds.query_tiles, [&](int64_t task, int) {
      const int64_t bh = task / bounds.query_tiles, tile = task % bounds.query_tiles, t0 = tile * kQueryTile;
      load_tables<S>(spec, selected, io.q, bh / H, bh % H, t0, rows_in_tile(tile), out + (bh * Q + t0) * row_bytes);
    });
    return out;
  }

  int64_t rows_in_tile(int64_t tile) const {
    return Q - tile * kQueryTile < kQueryTile ? Q - tile * kQueryTile : kQueryTile;
  }

  /// Adds the gradients of query tile `tile` of `head` against the packed keys [begin + first, begin + last).
  void query_tile(BwdScratch<T>& s, const SelectedScratch& selection, const Columns& c, int64_t b, int64_t head,
                  int64_t tile, int64_t begin, int first, int last) {
    const int64_t t0 = tile * kQueryTile, n = rows_in_tile(tile), stat = (b * H + head) * Q + t0;
    const int64_t keys = (N - begin < c.last ? N - begin : c.last) - c.first, cols = c.last - c.first, at = c.first - first;
    const S *q = row_of<const S>(io.q, b, head, t0), *g = row_of<const S>(grads.dout, b, head, t0);
    copy_rows<T>(q, io.q.stride[2], n, D, scales.query, s.queries);
    copy_rows<T>(g, grads.dout.stride[2], n, D, T(1), s.dout);
    pack_panels<T>(s.queries, D, n, D, padded, n, s.query_panels);
    pack_panels<T>(s.dout, D, n, D, padded, n, s.dout_panels);

    block_gemm<T>(n, cols, D, s.queries, D, {s.keys_t + at * D, D}, s.probabilities + c.first, kScoreStride, false);
    if (spec.softcap > 0) cap_scores<T>(c, n, scales.cap, s.probabilities, s.slope);
    if (c.masked || begin + c.last > N) {
      TileRows rows;
      rows.load(spec.pattern, bounds, b, t0, n, bounds.shifted(head, H));
      if (selects) {
        if (!tables) load_tables<S>(spec, selected, io.q, b, head, t0, n, selection.tables);
        mask_selected<T>(spec, bounds, rows, c, b, begin, N, n, stat, tables ? tables + stat * row_bytes : selection.tables,
                         selection.codes, s.probabilities);
      } else {
        mask_scores<T>(bounds, rows, c, b, begin, N, n, s.probabilities);
      }
    }
    block_gemm<T>(n, cols, D, s.dout, D, {s.values_t + at * D, D}, s.dscores + c.first, kScoreStride, false);
    softmax_gradient<T>(c, n, static_cast<const T*>(io.lse) + stat, delta + stat,
                        grads.dlse ? static_cast<const T*>(grads.dlse) + stat : nullptr, s.slope, s.probabilities,
                        s.dscores);

    block_gemm<T, true>(keys, padded, n, s.probabilities + c.first, kScoreStride, {s.dout_panels, n}, s.dv + at * padded,
                        padded, true);
    block_gemm<T, true>(keys, padded, n, s.dscores + c.first, kScoreStride, {s.query_panels, n}, s.dk + at * padded, padded,
                        true);
    block_gemm<T>(n, padded, keys, s.dscores + c.first, kScoreStride, {s.keys, last - first, at}, s.dq, padded, false);
    add_rows<T>(s.dq, padded, n, D, T(spec.scale), dq.row(b, head, t0), dq.stride[2]);
  }

  /// All heads of one key/value head, one block of queries, one tile of keys.
  void block(BwdScratch<T>& s, const SelectedScratch& selection, int64_t b, int64_t kv, int64_t query_block,
             int64_t key_tile) {
    const int64_t first_tile = query_block * kBlockTiles, begin = key_tile * kKeyTile;
    const int64_t left = bounds.query_tiles - first_tile, tiles = left < kBlockTiles ? left : kBlockTiles;
    int first = kKeyTile, last = 0;
    for (int64_t i = 0; i < tiles * group; ++i) {
      const Columns c = visible_columns(bounds, b, kv * group + i % group, H, first_tile + i / group, key_tile);
      s.columns[i] = c;
      if (c.last) first = c.first < first ? c.first : first, last = c.last > last ? c.last : last;
    }
    if (!last) return;
    const int64_t keys = (N - begin < last ? N - begin : last) - first;
    const S *k = row_of<const S>(io.k, b, kv, begin + first), *v = row_of<const S>(io.v, b, kv, begin + first);
    pack_panels_transposed<T>(k, io.k.stride[2], keys, D, last - first, s.keys_t);
    pack_panels_transposed<T>(v, io.v.stride[2], keys, D, last - first, s.values_t);
    pack_panels<T>(k, io.k.stride[2], keys, D, padded, last - first, s.keys);
    if (selects) load_codes(spec, b, kv, K, begin, N, selection.codes);
    std::memset(s.dk, 0, keys * padded * sizeof(T));
    std::memset(s.dv, 0, keys * padded * sizeof(T));
    for (int64_t i = 0; i < tiles * group; ++i)
      if (s.columns[i].last)
        query_tile(s, selection, s.columns[i], b, kv * group + i % group, first_tile + i / group, begin, first, last);
    add_rows<T>(s.dk, padded, keys, D, scales.key_gradient, dk.row(b, kv, begin + first), dk.stride[2]);
    add_rows<T>(s.dv, padded, keys, D, T(1), dv.row(b, kv, begin + first), dv.stride[2]);
  }

  /// Whether any head of the block sees any key; cheap and never wrong in the direction of skipping.
  bool any_visible(int64_t b, int64_t query_block, int64_t key_tile) const {
    for (int64_t i = 0; i < kBlockTiles && query_block * kBlockTiles + i < bounds.query_tiles; ++i)
      for (int c = 0; c < bounds.classes; ++c)
        if (classify(bounds.row_range(b, c, query_block * kBlockTiles + i), bounds.tile_range(b, key_tile), bounds.sinks) !=
            Visibility::kSkip)
          return true;
    return false;
  }

  void run() {
    row_products<S>(io, grads, context, delta);
    dq.clear(grads.dq, context);
    dk.clear(grads.dk, context);
    dv.clear(grads.dv, context);
    const int64_t query_blocks = ceil_div(Q, kBlock),
                  blocks = query_blocks > bounds.key_tiles ? query_blocks : bounds.key_tiles;
    Arena measure(nullptr);
    BwdScratch<T>(measure, kBlockTiles * group, D, spec.softcap > 0);
    SelectedScratch(measure, spec, 1);
    const auto get = [&](int64_t bytes) { return context.workspace.get(context.workspace.self, bytes); };
    char* memory = static_cast<char*>(get(measure.used() * context.parallel.workers));
    struct Block {
      int64_t batch, query, key;
    };
    auto* list = static_cast<Block*>(get(B * blocks * int64_t(sizeof(Block))));
    for (int64_t diagonal = 0; diagonal < blocks; ++diagonal) {
      int64_t count = 0;
      for (int64_t b = 0; b < B; ++b)
        for (int64_t key = 0; key < bounds.key_tiles; ++key) {
          const int64_t query = (key + diagonal) % blocks;
          if (query < query_blocks && any_visible(b, query, key)) list[count++] = {b, query, key};
        }
      parallel_for(context, count * K, [&](int64_t task, int worker) {
        Arena arena(memory + measure.used() * worker);
        BwdScratch<T> scratch(arena, kBlockTiles * group, D, spec.softcap > 0);
        const SelectedScratch selection(arena, spec, 1);
        const Block& at = list[task / K];
        block(scratch, selection, at.batch, task % K, at.query, at.key);
      });
    }
    dq.template write<S>(grads.dq, context);
    dk.template write<S>(grads.dk, context);
    dv.template write<S>(grads.dv, context);
  }
};

}  // namespace

void attention_bwd(const AttentionSpec& spec, const AttentionTensors& io, const AttentionGradients& grads,
                   const Context& context) {
  if (spec.pattern.kind == PatternKind::kTiles) return attention_listed_bwd(spec, io, grads, context);
  switch (io.q.dtype) {
    case DType::kFloat32: return Backward<float>{spec, io, grads, context}.run();
    case DType::kFloat64: return Backward<double>{spec, io, grads, context}.run();
    case DType::kBFloat16: return Backward<bfloat16>{spec, io, grads, context}.run();
    case DType::kFloat16: return;  // dispatch_cpu.cpp refuses it
  }
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
