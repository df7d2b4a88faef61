#pragma once
// Softmax cross-entropy of one row of logits, which becomes its own gradient. Only for per-ISA sources.
#include <cmath>

#include "common/vec.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {

namespace detail {
// ln 2 in two parts; n * high is exact for every n that exp2's exponent range allows (Cody and Waite 1980).
template <class T>
inline constexpr T kLn2High = T(0.693359375);
template <>
inline constexpr double kLn2High<double> = 0x1.62e42feep-1;
template <class T>
inline constexpr T kLn2Low = T(-2.12194440054690583e-4);
template <>
inline constexpr double kLn2Low<double> = 1.90821492927058770002e-10;

inline constexpr double kExp[] = {
    1.0,        1.0,         1.0 / 2,      1.0 / 6,       1.0 / 24,       1.0 / 120,       1.0 / 720,
    1.0 / 5040, 1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800.0};
}  // namespace detail

/// e^x for x <= 0 within two ulp; 0 where the result would not be a normal number. NaN gives NaN.
/// exp2(x * log2 e) would lose |x| / 2 ulp to the rounding of its argument.
template <class T>
inline Vec<T> exp_nonpositive(Vec<T> x) {
  using Shape = detail::ExpShape<T>;
  const Mask<T> tiny = x < T(Shape::lowest * 0.69314718055994530942);
  const Vec<T> clamped = select<T>(tiny, Vec<T>{}, x);
  const Vec<T> shifted = clamped * T(1.4426950408889634074) + Shape::magic;
  const Vec<T> n = shifted - Shape::magic;
  const Vec<T> f = (clamped - n * detail::kLn2High<T>)-n * detail::kLn2Low<T>;
  Vec<T> p = splat<T>(T(detail::kExp[Shape::degree]));
#pragma GCC unroll 16
  for (int i = Shape::degree - 1; i >= 0; --i) p = p * f + T(detail::kExp[i]);
  const Mask<T> scale = (Mask<T>)shifted << Shape::mantissa;
  return select<T>(tiny, Vec<T>{}, (Vec<T>)((Mask<T>)p + scale));
}

/// How raw products become logits z. A row is kept as z / unit: with a soft-cap that is tanh, whose square the gradient
/// needs, and differences of z lose nothing to a division by the cap.
template <class T, class S>
struct RowLogits {
  const S* bias;  // or null
  T scale, softcap;

  bool plain() const { return !bias && scale == T(1) && softcap == T(0); }
  bool capped() const { return softcap > T(0); }
  T unit() const { return capped() ? softcap : T(1); }
};

/// Calls body(pointer to kLanes values, first column) over a row; the last columns go through a padded copy.
template <class T, class F>
inline void for_lanes(T* row, int64_t columns, T padding, F&& body) {
  int64_t c = 0;
  for (; c + kLanes<T> <= columns; c += kLanes<T>) body(row + c, c);
  if (c == columns) return;
  T edge[kLanes<T>];
  for (int i = 0; i < kLanes<T>; ++i) edge[i] = c + i < columns ? row[c + i] : padding;
  body(edge, c);
  for (int i = 0; c + i < columns; ++i) row[c + i] = edge[i];
}

/// kLanes values from p, of which only the first `count` are read.
template <class T, class S>
inline Vec<T> load_lanes(const S* p, int64_t count) {
  Vec<T> out{};
  if (count >= kLanes<T>)
    for (int i = 0; i < kLanes<T>; ++i) out[i] = load_as<T>(p + i);
  else
    for (int i = 0; i < count; ++i) out[i] = load_as<T>(p + i);
  return out;
}

/// Turns raw products into z / unit in place and returns their maximum.
template <class T, class S>
inline T finish_logits(const RowLogits<T, S>& logits, T* row, int64_t V) {
  constexpr T lowest = kMinusInfinity<T>;
  if (!logits.plain()) {
    const T inner = logits.scale / logits.unit();
    for_lanes<T>(row, V, T(0), [&](T* p, int64_t c) {
      Vec<T> x = load(p);
      if (logits.bias) x += load_lanes<T>(logits.bias + c, V - c);
      x *= inner;
      if (logits.capped()) x = tanh<T>(x);
      store(p, x);
    });
  }
  Vec<T> top[4] = {splat<T>(lowest), splat<T>(lowest), splat<T>(lowest), splat<T>(lowest)};
  int64_t c = 0;
  for (; c + 4 * kLanes<T> <= V; c += 4 * kLanes<T>)
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) top[u] = max<T>(top[u], load(row + c + u * kLanes<T>));
  T out = horizontal_max<T>(max<T>(max<T>(top[0], top[1]), max<T>(top[2], top[3])));
  for (; c < V; ++c) out = row[c] > out ? row[c] : out;
  return out;
}

/// sum_v exp(unit * (row[v] - top)), in runs short enough that float sums keep their digits.
template <class T>
inline double sum_exp(const T* row, int64_t V, T top, T unit) {
  constexpr int64_t kRun = 64 * kLanes<T>;
  double total = 0;
  for (int64_t first = 0; first < V; first += kRun) {
    const int64_t columns = V - first < kRun ? V - first : kRun;
    const T* part = row + first;
    Vec<T> sum[2] = {};
    int64_t c = 0;
    for (; c + 2 * kLanes<T> <= columns; c += 2 * kLanes<T>) {
      sum[0] += exp_nonpositive<T>((load(part + c) - top) * unit);
      sum[1] += exp_nonpositive<T>((load(part + c + kLanes<T>) - top) * unit);
    }
    for (; c < columns; c += kLanes<T>) {
      Vec<T> x = splat<T>(kMinusInfinity<T>);
      for (int i = 0; i < kLanes<T> && c + i < columns; ++i) x[i] = (part[c + i] - top) * unit;
      sum[0] += exp_nonpositive<T>(x);
    }
    total += double(horizontal_sum<T>(sum[0] + sum[1]));
  }
  return total;
}

/// Returns weight * (log sum exp z - z[label]); with `gradient`, the row becomes the gradient of that with respect to the
/// raw products: weight * (softmax - onehot) * slope of the soft-cap * scale.
template <class T, class S>
inline double cross_entropy_row(const RowLogits<T, S>& logits, T* row, int64_t V, int64_t label, T weight, bool gradient) {
  const T top = finish_logits<T, S>(logits, row, V), unit = logits.unit();
  const double sum = sum_exp<T>(row, V, top, unit);
  const T target = row[label];
  const double distance = (double(top) - double(target)) * double(unit);
  const double loss = double(weight) * (distance + std::log(sum));
  if (!gradient) return loss;
  const bool capped = logits.capped();
  const double outer = double(weight) * double(logits.scale);
  const T factor = T(outer / sum);
  for_lanes<T>(row, V, kMinusInfinity<T>, [&](T* p, int64_t) {
    const Vec<T> z = load(p);
    Vec<T> g = exp_nonpositive<T>((z - top) * unit) * factor;
    if (capped) g *= T(1) - z * z;
    store(p, g);
  });
  const double slope = capped ? 1 - double(target) * double(target) : 1.0;
  row[label] = T((std::exp(-distance) / sum - 1) * outer * slope);
  return loss;
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
