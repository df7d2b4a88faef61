#pragma once
// The online softmax of the forward (Milakov and Gimelshein 2018) on tiles of scores. Only for per-ISA sources.
#include <cmath>

#include "attention/tile.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {

/// One worker's memory for `tiles` query tiles and one tile of keys.
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

/// Divides `count` rows by their sums into io.out, and writes their log-sum-exp.
template <class S, class T = Compute<S>>
void write_rows(const AttentionTensors& io, int64_t b, int64_t head, int64_t first, int64_t count, const T* rows,
                int64_t padded, const T* row_max, const T* row_sum) {
  const int64_t H = io.q.size[1], Q = io.q.size[2], D = io.q.size[3];
  for (int64_t r = 0; r < count; ++r) {
    const T scale = row_sum[r] > T(0) ? T(1) / row_sum[r] : T(0);
    S* out = row_of<S>(io.out, b, head, first + r);
    for (int64_t d = 0; d < D; ++d) store_as<T>(out + d, rows[r * padded + d] * scale);
    static_cast<T*>(io.lse)[(b * H + head) * Q + first + r] = natural_lse(row_max[r], row_sum[r]);
  }
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
