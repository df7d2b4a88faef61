// Barriers that not all threads of a block reach together.
#include "rules/case.h"

namespace rules::barrier {
namespace {

constexpr int kThreads = 128;

/// One barrier for all (right), or one for each half of the block.
__global__ void two_barriers_kernel(int* output) {
  const int t = threadIdx.x;
  if (simt::mutant(1)) {
    if (t < 64)
      __syncthreads();  // BUG 1
    else
      __syncthreads();  // BUG 1
  } else {
    __syncthreads();
  }
  output[t] = t;
}
void two_barriers(simt::Device&, const void*, void* output, int64_t) {
  simt::launch(two_barriers_kernel, 1, kThreads, 0, nullptr, static_cast<int*>(output));
}
RULE_CASE(two_barriers);

/// A loop whose count differs between warps: warp w does w rounds more than warp 0.
__global__ void counted_kernel(int* output) {
  const int t = threadIdx.x;
  const int rounds = simt::mutant(1) || simt::mutant(2) ? 2 + t / 32 : 2;
  for (int i = 0; i < rounds; ++i) __syncthreads();  // BUG 1 2
  if (simt::mutant(2)) __syncthreads();              // BUG 2
  output[t] = t;
}
void counted(simt::Device&, const void*, void* output, int64_t) {
  simt::launch(counted_kernel, 1, kThreads, 0, nullptr, static_cast<int*>(output));
}
RULE_CASE(counted);

/// Threads beyond the end return before the barrier (mutant 1) or after it.
__global__ void early_exit_kernel(const int* input, int* output, int n) {
  SIMT_SHARED(int[kThreads], values);
  const int t = threadIdx.x;
  if (simt::mutant(1) && t >= n) return;
  values[t] = t < n ? input[t] : 0;
  __syncthreads();  // BUG 1
  if (t < n) output[t] = values[n - 1 - t];
}
void early_exit(simt::Device&, const void* input, void* output, int64_t n) {
  simt::launch(early_exit_kernel, 1, kThreads, 0, nullptr, static_cast<const int*>(input), static_cast<int*>(output),
               int(n));
}
RULE_CASE(early_exit);

/// The barrier of a template: two instantiations are two instructions, though on one line of the source.
template <int Step>
SIMT_DEVICE int step(int t) {
  __syncthreads();  // BUG 1
  return t + Step;
}
__global__ void instantiations_kernel(int* output) {
  const int t = threadIdx.x;
  output[t] = simt::mutant(1) && t >= 64 ? step<2>(t) : step<1>(t);
}
void instantiations(simt::Device&, const void*, void* output, int64_t) {
  simt::launch(instantiations_kernel, 1, kThreads, 0, nullptr, static_cast<int*>(output));
}
RULE_CASE(instantiations);

/// The barriers that count, and one kind against another.
__global__ void votes_kernel(const int* input, int* output) {
  const int t = threadIdx.x;
  const int count = __syncthreads_count(input[t] > 0);
  const int all = __syncthreads_and(input[t] > 0);
  const int any = __syncthreads_or(input[t] > 2);
  output[t] = count * 4 + all * 2 + any;
}
void votes(simt::Device&, const void* input, void* output, int64_t) {
  simt::launch(votes_kernel, 1, kThreads, 0, nullptr, static_cast<const int*>(input), static_cast<int*>(output));
}
RULE_CASE(votes);

}  // namespace
}  // namespace rules::barrier
