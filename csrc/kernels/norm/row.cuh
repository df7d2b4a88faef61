#pragma once
// A row of C elements spread over one block: 16 bytes at a time where rows allow it, sums over the block.
#include "common/convert.cuh"

namespace longspan::kernels {

/// How a block of `kRowThreads` threads walks over a row: thread i has units i, i + kRowThreads, ... of `kUnit` elements.
inline constexpr int kRowThreads = 256;
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

/// Calls body(first element) for this thread's units.
template <class S, class F>
SIMT_DEVICE void each_unit(int C, F&& body) {
  for (int first = int(threadIdx.x) * kUnit<S>; first < C; first += kRowThreads * kUnit<S>) body(first);
}

/// The sum of `part` over the block, in every thread and in an order that depends on nothing. Two barriers.
SIMT_DEVICE float row_sum(float part) {
  SIMT_SHARED(float[kRowThreads / 32], parts);
  SIMT_UNROLL
  for (int offset = 16; offset > 0; offset /= 2) part += __shfl_xor_sync(~0u, part, simt::mutant(64) ? 1 : offset);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = part;
  if (!simt::mutant(60)) __syncthreads();
  float sum = 0;
  SIMT_UNROLL
  for (int i = 0; i < kRowThreads / 32; ++i) sum += parts[i];
  if (!simt::mutant(61)) __syncthreads();  // the next sum writes to the same place
  return sum;
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
