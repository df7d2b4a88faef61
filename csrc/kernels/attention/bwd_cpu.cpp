// Attention backward on the CPU; see attention.h for the contract.
//
// Scores are cut into blocks of kBlock query rows x kKeyTile keys. Block (query j, key i) lies on diagonal j - i; the
// blocks of one diagonal (modulo the block count) touch different query rows and different key rows, so they run in
// parallel and add straight into dq, dk and dv. Diagonals follow each other in a fixed order.
#include "attention/tile.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {
namespace {

inline constexpr int kBlockTiles = kKeyTile / kQueryTile;
inline constexpr int kBlock = kKeyTile;

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

/// Where gradients are summed: the outputs themselves, or float arrays when the outputs are bfloat16.
template <class T>
struct Accumulator {
  T* data;
  int64_t stride[3];

  template <class S>
  static Accumulator of(const View<4>& out, const Context& context) {
    if constexpr (sizeof(S) == sizeof(T)) {
      return {static_cast<T*>(out.data), {out.stride[0], out.stride[1], out.stride[2]}};
    } else {
      const int64_t d = out.size[3], t = out.size[2] * d, h = out.size[1] * t;
      return {static_cast<T*>(context.workspace.get(context.workspace.self, out.size[0] * h * int64_t(sizeof(T)))),
              {h, t, d}};
    }
  }
  T* row(int64_t b, int64_t h, int64_t t) const { return data + b * stride[0] + h * stride[1] + t * stride[2]; }

  void clear(const View<4>& out, const Context& context) const {
    const int64_t rows = out.size[2], chunks = ceil_div(rows, kBlock);
    parallel_for(context, out.size[0] * out.size[1] * chunks, [&](int64_t task, int) {
      const int64_t b = task / chunks / out.size[1], h = task / chunks % out.size[1], first = task % chunks * kBlock;
      for (int64_t t = first; t < rows && t < first + kBlock; ++t) std::memset(row(b, h, t), 0, out.size[3] * sizeof(T));
    });
  }

  template <class S>
  void write(const View<4>& out, const Context& context) const {
    if constexpr (sizeof(S) != sizeof(T)) {
      parallel_for(context, out.size[0] * out.size[1], [&](int64_t task, int) {
        const int64_t b = task / out.size[1], h = task % out.size[1];
        for (int64_t t = 0; t < out.size[2]; ++t)
          for (int64_t d = 0; d < out.size[3]; ++d) store_as<T>(row_of<S>(out, b, h, t) + d, row(b, h, t)[d]);
      });
    }
  }
};

/// to[r, d] += from[r, d] * factor over dim columns of padded rows.
template <class T>
void add_rows(const T* from, int64_t padded, int64_t count, int64_t dim, T factor, T* to, int64_t stride) {
  for (int64_t r = 0; r < count; ++r)
    for (int64_t d = 0; d < dim; ++d) to[r * stride + d] += from[r * padded + d] * factor;
}

/// Probabilities from base-2 logits, then dscores = P * (dP - delta + dlse), in place of dP.
template <class T>
void softmax_gradient(const Columns& columns, int64_t count, const T* lse, const T* delta, const T* dlse, const T* slope,
                      T* probabilities, T* dscores) {
  for (int64_t i = 0; i < count; ++i) {
    // In base 2 and in two parts: one rounding of the product would shift a whole row of probabilities.
    const double base2 = lse[i] == kMinusInfinity<T> ? 0.0 : double(lse[i]) * 1.4426950408889634074;
    const T top = T(base2), rest = T(base2 - double(top)), extra = dlse ? dlse[i] : T(0);
    T *p = probabilities + i * kScoreStride, *ds = dscores + i * kScoreStride;
    for (int c = columns.first; c < columns.last; c += kLanes<T>) {
      const Vec<T> x = exp2<T>((load(p + c) - top) - rest);
      Vec<T> g = x * ((load(ds + c) - delta[i]) + extra);
      if (slope) g *= load(slope + i * kScoreStride + c);
      store(p + c, x);
      store(ds + c, g);
    }
  }
}

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
  T* delta = static_cast<T*>(context.workspace.get(context.workspace.self, B * H * Q * int64_t(sizeof(T))));
  Accumulator<T> dq = Accumulator<T>::template of<S>(grads.dq, context);
  Accumulator<T> dk = Accumulator<T>::template of<S>(grads.dk, context);
  Accumulator<T> dv = Accumulator<T>::template of<S>(grads.dv, context);

  /// delta[b,h,t] = <dout, out>, summed as block_gemm sums dP, so that a row that sees one key gets exactly dP - delta = 0
  void row_sums() {
    const int64_t chunks = ceil_div(Q, kBlock);
    parallel_for(context, B * H * chunks, [&](int64_t task, int) {
      const int64_t bh = task / chunks, b = bh / H, h = bh % H, first = task % chunks * kBlock;
      for (int64_t t = first; t < Q && t < first + kBlock; ++t) {
        const S *g = row_of<const S>(grads.dout, b, h, t), *o = row_of<const S>(io.out, b, h, t);
        T sum = T(0);
        for (int64_t begin = 0; begin < D; begin += kChain) {
          T part = T(0);
          for (int64_t d = begin; d < D && d < begin + kChain; ++d)
            part = multiply_add(load_as<T>(g + d), load_as<T>(o + d), part);
          sum += part;
        }
        delta[bh * Q + t] = sum;
      }
    });
  }

  int64_t rows_in_tile(int64_t tile) const {
    return Q - tile * kQueryTile < kQueryTile ? Q - tile * kQueryTile : kQueryTile;
  }

  /// Adds the gradients of query tile `tile` of `head` against the packed keys [begin + first, begin + last).
  void query_tile(BwdScratch<T>& s, const Columns& c, int64_t b, int64_t head, int64_t tile, int64_t begin, int first,
                  int last) {
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
      mask_scores<T>(bounds, rows, c, b, begin, N, n, s.probabilities);
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
  void block(BwdScratch<T>& s, int64_t b, int64_t kv, int64_t query_block, int64_t key_tile) {
    const int64_t first_tile = query_block * kBlockTiles, begin = key_tile * kKeyTile;
    const int64_t left = bounds.query_tiles - first_tile, tiles = left < kBlockTiles ? left : kBlockTiles;
    int first = kKeyTile, last = 0;
    for (int64_t i = 0; i < tiles * group; ++i) {
      const Columns c =
          visible_columns(spec.pattern, bounds, b, kv * group + i % group, H, first_tile + i / group, key_tile);
      s.columns[i] = c;
      if (c.last) first = c.first < first ? c.first : first, last = c.last > last ? c.last : last;
    }
    if (!last) return;
    const int64_t keys = (N - begin < last ? N - begin : last) - first;
    const S *k = row_of<const S>(io.k, b, kv, begin + first), *v = row_of<const S>(io.v, b, kv, begin + first);
    pack_panels_transposed<T>(k, io.k.stride[2], keys, D, last - first, s.keys_t);
    pack_panels_transposed<T>(v, io.v.stride[2], keys, D, last - first, s.values_t);
    pack_panels<T>(k, io.k.stride[2], keys, D, padded, last - first, s.keys);
    std::memset(s.dk, 0, keys * padded * sizeof(T));
    std::memset(s.dv, 0, keys * padded * sizeof(T));
    for (int64_t i = 0; i < tiles * group; ++i)
      if (s.columns[i].last)
        query_tile(s, s.columns[i], b, kv * group + i % group, first_tile + i / group, begin, first, last);
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
    row_sums();
    dq.clear(grads.dq, context);
    dk.clear(grads.dk, context);
    dv.clear(grads.dv, context);
    const int64_t query_blocks = ceil_div(Q, kBlock),
                  blocks = query_blocks > bounds.key_tiles ? query_blocks : bounds.key_tiles;
    Arena measure(nullptr);
    BwdScratch<T>(measure, kBlockTiles * group, D, spec.softcap > 0);
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
        const Block& at = list[task / K];
        block(scratch, at.batch, task % K, at.query, at.key);
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
  switch (io.q.dtype) {
    case DType::kFloat32: return Backward<float>{spec, io, grads, context}.run();
    case DType::kFloat64: return Backward<double>{spec, io, grads, context}.run();
    case DType::kBFloat16: return Backward<bfloat16>{spec, io, grads, context}.run();
    case DType::kFloat16: return;  // dispatch_cpu.cpp refuses it
  }
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
