#pragma once
// Rows as the CPU kernels read them: in the type they are computed in. Only for per-ISA sources.
#include "common/context.h"
#include "common/vec.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {

template <class T, class From>
inline void widen(const From* from, T* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = load_as<T>(from + i);
}
template <class T, class To>
inline void round_row(const T* from, To* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) store_as<T>(to + i, from[i]);
}

template <class T>
T* scratch(const Context& context, int64_t count) {
  return static_cast<T*>(context.workspace.get(context.workspace.self, (count ? count : 1) * int64_t(sizeof(T))));
}

/// offset + x[c] in T for a vector that has dtype S or T; `otherwise` in every place where there is none.
template <class T, class S>
const T* vector_in(const void* x, DType dtype, int64_t count, T offset, T otherwise, const Context& context) {
  T* out = scratch<T>(context, count);
  const bool narrow = sizeof(S) != sizeof(T) && element_size(dtype) == int64_t(sizeof(S));
  for (int64_t c = 0; c < count; ++c)
    out[c] = !x       ? otherwise
             : narrow ? offset + load_as<T>(static_cast<const S*>(x) + c)
                      : offset + static_cast<const T*>(x)[c];
  return out;
}

/// sum over i of f(i .. i + lanes), vectors first and the tail one by one.
template <class T, class OfVector, class OfScalar>
inline T sum_row(int64_t count, OfVector&& of_vector, OfScalar&& of_scalar) {
  constexpr int64_t kStep = kLanes<T>;
  Vec<T> sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kStep <= count; i += 4 * kStep)
    for (int part = 0; part < 4; ++part) sums[part] += of_vector(i + part * kStep);
  for (; i + kStep <= count; i += kStep) sums[0] += of_vector(i);
  T total = horizontal_sum<T>((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < count; ++i) total += of_scalar(i);
  return total;
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
