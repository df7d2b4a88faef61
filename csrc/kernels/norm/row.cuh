#pragma once
// A row of C elements spread over one block, and sums over the block.
#include "common/units.cuh"

namespace longspan::kernels {

/// Thread i of a block has the units i, i + kRowThreads, ... of a row.
inline constexpr int kRowThreads = 256;

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

}  // namespace longspan::kernels
