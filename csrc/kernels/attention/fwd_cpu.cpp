// Attention forward on the CPU; see attention.h for the contract.
#include <cmath>

#include "attention/tile.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {
namespace {

template <class T>
struct FwdScratch {
  T *queries, *keys, *values, *scores, *out, *row_max, *row_sum;
  Columns* columns;

  FwdScratch(Arena& arena, int64_t tiles, int64_t dim) {
    const int64_t padded = round_up(dim, kLanes<T>);
    queries = arena.take<T>(tiles * kQueryTile * dim);
    keys = arena.take<T>(kKeyTile * dim);
    values = arena.take<T>(kKeyTile * padded);
    scores = arena.take<T>(kQueryTile * kScoreStride);
    out = arena.take<T>(tiles * kQueryTile * padded);
    row_max = arena.take<T>(tiles * kQueryTile);
    row_sum = arena.take<T>(tiles * kQueryTile);
    columns = arena.take<Columns>(tiles);
  }
};

/// One online-softmax step: scores become probabilities relative to the new row maximum; out and row_sum are rescaled.
template <class T>
void softmax_step(const Columns& columns, int64_t count, int64_t padded, T* scores, T* out, T* row_max, T* row_sum) {
  for (int64_t i = 0; i < count; ++i) {
    T* s = scores + i * kScoreStride;
    Vec<T> top = load(s + columns.first);
    for (int c = columns.first + kLanes<T>; c < columns.last; c += kLanes<T>) top = max<T>(top, load(s + c));
    const T before = row_max[i];
    const T highest = horizontal_max<T>(top);
    const T now = highest > before ? highest : before;
    const T shift = now == kMinusInfinity<T> ? T(0) : now;  // a row that sees nothing yet: every exp2 is 0
    Vec<T> sum{};
    for (int c = columns.first; c < columns.last; c += kLanes<T>) {
      const Vec<T> p = exp2<T>(load(s + c) - shift);
      store(s + c, p);
      sum += p;
    }
    T keep = T(1);
    if (now != before) {
      keep = exp2<T>(splat<T>(before - shift))[0];
      for (int64_t d = 0; d < padded; d += kLanes<T>) store(out + i * padded + d, load(out + i * padded + d) * keep);
    }
    row_sum[i] = row_sum[i] * keep + horizontal_sum<T>(sum);
    row_max[i] = now;
  }
}

template <class T>
T natural_lse(T base2_max, T sum) {
  return sum > T(0) ? T(double(base2_max) * 0.69314718055994530942 + std::log(double(sum))) : kMinusInfinity<T>;
}

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

  Arena measure(nullptr);
  FwdScratch<T>(measure, tiles, D);
  char* memory =
      static_cast<char*>(context.workspace.get(context.workspace.self, measure.used() * context.parallel.workers));

  parallel_for(context, B * K * chunks, [&](int64_t task, int worker) {
    Arena arena(memory + measure.used() * worker);
    FwdScratch<T> scratch(arena, tiles, D);
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
      for (int r = 0; r < kQueryTile; ++r) scratch.row_max[i * kQueryTile + r] = kMinusInfinity<T>;
    }
    std::memset(scratch.out, 0, used * kQueryTile * padded * sizeof(T));
    std::memset(scratch.row_sum, 0, used * kQueryTile * sizeof(T));

    for (int64_t kt = 0; kt < bounds.key_tiles; ++kt) {
      int first = kKeyTile, last = 0;
      for (int64_t i = 0; i < used; ++i) {
        const Columns c = visible_columns(spec.pattern, bounds, b, head(i), H, tile(i), kt);
        scratch.columns[i] = c;
        if (c.last) first = c.first < first ? c.first : first, last = c.last > last ? c.last : last;
      }
      if (!last) continue;
      const int64_t begin = kt * kKeyTile, keys = N - begin < last ? N - begin : last;
      pack_panels_transposed<T>(row_of<const S>(io.k, b, kv, begin + first), io.k.stride[2], keys - first, D, last - first,
                                scratch.keys);
      pack_panels<T>(row_of<const S>(io.v, b, kv, begin + first), io.v.stride[2], keys - first, D, padded, last - first,
                     scratch.values);
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
      for (int64_t r = 0; r < count(i); ++r) {
        const int64_t t = tile(i) * kQueryTile + r;
        const T sum = scratch.row_sum[i * kQueryTile + r], top = scratch.row_max[i * kQueryTile + r];
        const T scale = sum > T(0) ? T(1) / sum : T(0);
        S* out = row_of<S>(io.out, b, head(i), t);
        for (int64_t d = 0; d < D; ++d) store_as<T>(out + d, scratch.out[(i * kQueryTile + r) * padded + d] * scale);
        static_cast<T*>(io.lse)[(b * H + head(i)) * Q + t] = natural_lse(top, sum);
      }
  });
}

}  // namespace

void attention_fwd(const AttentionSpec& spec, const AttentionTensors& io, const Context& context) {
  switch (io.q.dtype) {
    case DType::kFloat32: return forward<float>(spec, io, context);
    case DType::kFloat64: return forward<double>(spec, io, context);
    case DType::kBFloat16: return forward<bfloat16>(spec, io, context);
    case DType::kFloat16: return;  // dispatch_cpu.cpp refuses it
  }
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
