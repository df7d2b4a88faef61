// Shared-memory access patterns whose bank conflicts are known.
#include "rules/case.h"

namespace rules::banks {
namespace {

/// Lane i reads word i * stride, three times.
__global__ void strided_kernel(int* output, int stride) {
  int* words = simt::dyn_smem<int>();
  const int t = threadIdx.x;
  for (int i = t; i < 32 * 33 + 1; i += 32) words[i] = i;
  __syncwarp();
  int sum = 0;
  for (int round = 0; round < 3; ++round) sum += words[t * stride];
  output[t] = sum;
}
void strided(simt::Device&, const void*, void* output, int64_t n) {
  simt::launch(strided_kernel, 1, 32, (32 * 33 + 1) * sizeof(int), nullptr, static_cast<int*>(output), int(n));
}
RULE_CASE(strided);

/// Neighbouring lanes store 16 and 8 bytes.
__global__ void wide_kernel(float* output) {
  float* words = simt::dyn_smem<float>();
  const int t = threadIdx.x;
  reinterpret_cast<float4*>(words)[t] = make_float4(1.0f, 2.0f, 3.0f, 4.0f);
  reinterpret_cast<float2*>(words + 128)[31 - t] = make_float2(5.0f, 6.0f);
  __syncwarp();
  output[t] = words[t] + words[128 + t];
}
void wide(simt::Device&, const void*, void* output, int64_t) {
  simt::launch(wide_kernel, 1, 32, 32 * (sizeof(float4) + sizeof(float2)), nullptr, static_cast<float*>(output));
}
RULE_CASE(wide);

}  // namespace
}  // namespace rules::banks
