// What C++ leaves undefined and is a bug on the device too.
#include "rules/case.h"

namespace rules::undefined {
namespace {

constexpr int kThreads = 32;

__global__ void vector_load_kernel(const float* input, float* output, int offset) {
  const int t = threadIdx.x;
  const float4 four = *reinterpret_cast<const float4*>(input + 4 * t + offset);  // BUG 1
  output[t] = four.x + four.y + four.z + four.w;
}
void vector_load(simt::Device&, const void* input, void* output, int64_t) {
  simt::launch(vector_load_kernel, 1, kThreads, 0, nullptr, static_cast<const float*>(input), static_cast<float*>(output),
               simt::mutant(1) ? 1 : 0);
}
RULE_CASE(vector_load);

__global__ void local_array_kernel(const int* input, int* output, int columns) {
  int sums[4] = {};
  for (int column = 0; column < columns; ++column) sums[column] += input[threadIdx.x];  // BUG 1
  output[threadIdx.x] = sums[0] + sums[3];
}
void local_array(simt::Device&, const void* input, void* output, int64_t) {
  simt::launch(local_array_kernel, 1, kThreads, 0, nullptr, static_cast<const int*>(input), static_cast<int*>(output),
               simt::mutant(1) ? 5 : 4);
}
RULE_CASE(local_array);

__global__ void shift_kernel(int* output, int lanes) {
  const uint32_t mask = (1u << lanes) - 1;  // BUG 1
  output[threadIdx.x] = int(mask);
}
void shift_count(simt::Device&, const void*, void* output, int64_t) {
  simt::launch(shift_kernel, 1, kThreads, 0, nullptr, static_cast<int*>(output), simt::mutant(1) ? 32 : 5);
}
RULE_CASE(shift_count);

__global__ void divide_kernel(const int* input, int* output, int groups) {
  output[threadIdx.x] = input[threadIdx.x] / groups;  // BUG 1
}
void divide(simt::Device&, const void* input, void* output, int64_t) {
  simt::launch(divide_kernel, 1, kThreads, 0, nullptr, static_cast<const int*>(input), static_cast<int*>(output),
               simt::mutant(1) ? 0 : 4);
}
RULE_CASE(divide);

__global__ void trap_kernel(int* output) {
  if (simt::mutant(1) && threadIdx.x == 3) __trap();  // BUG 1
  output[threadIdx.x] = 1;
}
void trap(simt::Device&, const void*, void* output, int64_t) {
  simt::launch(trap_kernel, 1, kThreads, 0, nullptr, static_cast<int*>(output));
}
RULE_CASE(trap);

}  // namespace
}  // namespace rules::undefined
