// Reads of memory that nothing was written to.
#include "rules/case.h"

namespace rules::initialisation {
namespace {

constexpr int kThreads = 32;

/// Mutant 1 leaves a hole in shared memory; mutant 2 relies on what the block before left there.
__global__ void shared_kernel(const float* input, float* output) {
  SIMT_SHARED(float[kThreads], values);
  const int t = threadIdx.x, i = blockIdx.x * kThreads + t;
  const bool writes = simt::mutant(1) ? t != 7 : simt::mutant(2) ? blockIdx.x == 0 : true;
  if (writes) values[t] = input[i];
  __syncthreads();
  output[i] = values[kThreads - 1 - t];  // BUG 1 2
}
void shared(simt::Device&, const void* input, void* output, int64_t n) {
  simt::launch(shared_kernel, unsigned(n) / kThreads, kThreads, 0, nullptr, static_cast<const float*>(input),
               static_cast<float*>(output));
}
RULE_CASE(shared);

/// Accumulates into an array that should have been zeroed.
__global__ void accumulate_kernel(const float* input, float* sums, float* output) {
  const int t = threadIdx.x;
  sums[t] += input[t];  // BUG 1
  output[t] = sums[t];
}
void accumulate(simt::Device& device, const void* input, void* output, int64_t n) {
  auto* sums = static_cast<float*>(device.scratch("sums", size_t(n) * sizeof(float)));
  if (!simt::mutant(1)) cudaMemsetAsync(sums, 0, size_t(n) * sizeof(float), nullptr);
  simt::launch(accumulate_kernel, 1, unsigned(n), 0, nullptr, static_cast<const float*>(input), sums,
               static_cast<float*>(output));
}
RULE_CASE(accumulate);

}  // namespace
}  // namespace rules::initialisation
