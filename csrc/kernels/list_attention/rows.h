#pragma once
// Products with gathered rows of k and v. Only for per-ISA sources.
#include <algorithm>
#include <cmath>

#include "common/vec.h"
#include "list_attention/list_attention.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {

inline constexpr double kLog2e = 1.4426950408889634074;
inline constexpr int kTogether = 4;       // gathered rows whose products are formed together
inline constexpr int64_t kListTile = 64;  // rows of a task
inline constexpr int kWideVecs = 8;       // vectors of a sum that stay in registers

template <class S>
inline S* row_at(const View<4>& x, int64_t b, int64_t h, int64_t t) {
  return static_cast<S*>(x.data) + b * x.stride[0] + h * x.stride[1] + t * x.stride[2];
}

/// Rows [B,heads,N,D] in the type that they are computed in, a whole number of vectors long.
template <class T>
struct WideRows {
  const T* data;
  int64_t batch, head, row;

  /// The array itself where it is so already; else a copy from the workspace.
  template <class S>
  static WideRows of(const View<4>& x, const Context& context) {
    const int64_t D = x.size[3], padded = round_up(D, kLanes<T>);
    if (sizeof(S) == sizeof(T) && padded == D) return {static_cast<const T*>(x.data), x.stride[0], x.stride[1], x.stride[2]};
    const int64_t heads = x.size[0] * x.size[1], N = x.size[2];
    T* copy = static_cast<T*>(
        context.workspace.get(context.workspace.self, std::max<int64_t>(1, heads * N * padded) * int64_t(sizeof(T))));
    parallel_for(context, heads, [&](int64_t bh, int) {
      for (int64_t t = 0; t < N; ++t) {
        const S* from = row_at<const S>(x, bh / x.size[1], bh % x.size[1], t);
        T* to = copy + (bh * N + t) * padded;
        for (int64_t d = 0; d < D; ++d) to[d] = load_as<T>(from + d);
        for (int64_t d = D; d < padded; ++d) to[d] = T(0);
      }
    });
    return {copy, x.size[1] * N * padded, N * padded, padded};
  }
  const T* at(int64_t b, int64_t h) const { return data + b * batch + h * head; }
};

/// One row, times a factor, padded with zeros.
template <class T, class S>
void widen(const S* from, int64_t D, int64_t padded, T factor, T* to) {
  for (int64_t d = 0; d < D; ++d) to[d] = load_as<T>(from + d) * factor;
  for (int64_t d = D; d < padded; ++d) to[d] = T(0);
}

/// products[i] = <x, rows[numbers[i]]> for i < count.
template <class T>
void gathered_products(const T* x, const T* rows, int64_t stride, int64_t padded, const int32_t* numbers, int64_t count,
                       T* products) {
  int64_t i = 0;
  for (; i + kTogether <= count; i += kTogether) {
    Vec<T> sums[kTogether]{};
    const T* row[kTogether];
    for (int j = 0; j < kTogether; ++j) row[j] = rows + numbers[i + j] * stride;
    for (int64_t d = 0; d < padded; d += kLanes<T>) {
      const Vec<T> part = load(x + d);
#pragma GCC unroll 4
      for (int j = 0; j < kTogether; ++j) sums[j] += part * load(row[j] + d);
    }
    for (int j = 0; j < kTogether; ++j) products[i + j] = horizontal_sum<T>(sums[j]);
  }
  for (; i < count; ++i) {
    Vec<T> sum{};
    const T* row = rows + numbers[i] * stride;
    for (int64_t d = 0; d < padded; d += kLanes<T>) sum += load(x + d) * load(row + d);
    products[i] = horizontal_sum<T>(sum);
  }
}

/// to[d] = sum over i of weights[i] * rows[numbers[i]][d], in the order of i.
template <class T>
void gathered_sum(const T* weights, const T* rows, int64_t stride, int64_t padded, const int32_t* numbers, int64_t count,
                  T* to) {
  const int64_t vecs = padded / kLanes<T>;
  for (int64_t first = 0; first < vecs; first += kWideVecs) {
    const int used = int(std::min<int64_t>(kWideVecs, vecs - first));
    Vec<T> sums[kWideVecs]{};
    if (used == kWideVecs) {
      for (int64_t i = 0; i < count; ++i) {
        const T* row = rows + numbers[i] * stride + first * kLanes<T>;
#pragma GCC unroll 8
        for (int v = 0; v < kWideVecs; ++v) sums[v] += weights[i] * load(row + v * kLanes<T>);
      }
    } else {
      for (int64_t i = 0; i < count; ++i) {
        const T* row = rows + numbers[i] * stride + first * kLanes<T>;
        for (int v = 0; v < used; ++v) sums[v] += weights[i] * load(row + v * kLanes<T>);
      }
    }
    for (int v = 0; v < used; ++v) store(to + (first + v) * kLanes<T>, sums[v]);
  }
}

/// The length of a list.
inline int64_t list_length(const int32_t* list, int64_t slots) {
  return std::lower_bound(list, list + slots, 0, [](int32_t a, int) { return a >= 0; }) - list;
}

/// Products to base-2 logits in place: x, which has the scale already, or softcap * tanh(x) and its slope.
template <class T>
void cap_row(T softcap, int64_t count, T* x, T* slope) {
  for (int64_t i = 0; i < count; i += kLanes<T>) {
    const Vec<T> t = tanh<T>(load(x + i));
    store(x + i, t * T(double(softcap) * kLog2e));
    if (slope) store(slope + i, T(1) - t * t);
  }
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
