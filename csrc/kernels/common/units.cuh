#pragma once
// Rows that are read and written 16 bytes at a time where they allow it: units of kUnit elements.
#include <initializer_list>

#include "common/convert.cuh"
#include "common/types.h"

namespace longspan::kernels {

template <class S>
inline constexpr int kUnit = 16 / int(sizeof(S));

template <class S>
struct alignas(16) Unit {
  S at[kUnit<S>];
};

/// Elements [first, first + kUnit) of a row of C, in float; what is past the end is 0. `aligned`: rows start on 16 bytes and
/// C is a multiple of kUnit.
template <class S>
SIMT_DEVICE void load_unit(float (&to)[kUnit<S>], const S* row, int first, int C, bool aligned) {
  if (aligned) {
    const Unit<S> unit = *reinterpret_cast<const Unit<S>*>(row + first);
    SIMT_UNROLL
    for (int e = 0; e < kUnit<S>; ++e) to[e] = to_float(unit.at[e]);
    return;
  }
  SIMT_UNROLL
  for (int e = 0; e < kUnit<S>; ++e) to[e] = first + e < C ? to_float(row[first + e]) : 0.f;
}

template <class S>
SIMT_DEVICE void store_unit(S* row, const float (&from)[kUnit<S>], int first, int C, bool aligned) {
  if (aligned) {
    Unit<S> unit;
    SIMT_UNROLL
    for (int e = 0; e < kUnit<S>; ++e) store(&unit.at[e], from[e]);
    *reinterpret_cast<Unit<S>*>(row + first) = unit;
    return;
  }
  SIMT_UNROLL
  for (int e = 0; e < kUnit<S>; ++e)
    if (first + e < C) store(row + first + e, from[e]);
}

/// Whether all of these rows allow units: starts and strides on 16 bytes, a whole number of units. Null data allows
/// anything.
template <class S>
bool rows_aligned(int64_t C, std::initializer_list<const View<2>*> rows) {
  if (C % kUnit<S> != 0) return false;
  for (const View<2>* x : rows)
    if (x->data && (reinterpret_cast<uintptr_t>(x->data) % 16 != 0 || x->stride[0] % kUnit<S> != 0)) return false;
  return true;
}

}  // namespace longspan::kernels
