// Races between blocks of one launch.
#include "rules/case.h"

namespace rules::race_blocks {
namespace {

constexpr int kThreads = 32;

/// Adds all numbers to one global counter.
__global__ void total_kernel(const int* input, int* total, int n) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= n) return;
  if (simt::mutant(1)) {
    if (threadIdx.x == 0) *total += input[i];  // BUG 1
  } else {
    atomicAdd(total, input[i]);
  }
}
void total(simt::Device&, const void* input, void* output, int64_t n) {
  cudaMemsetAsync(output, 0, sizeof(int), nullptr);
  simt::launch(total_kernel, unsigned(n) / kThreads, kThreads, 0, nullptr, static_cast<const int*>(input),
               static_cast<int*>(output), int(n));
}
RULE_CASE(total);

/// Every block adds, and the last in the grid copies the counter: others may still add.
__global__ void read_total_kernel(const int* input, int* total, int* copy) {
  atomicAdd(total, input[blockIdx.x * kThreads + threadIdx.x]);
  if (simt::mutant(1) && blockIdx.x == gridDim.x - 1 && threadIdx.x == 0) *copy = *total;  // BUG 1
}
void read_total(simt::Device& device, const void* input, void* output, int64_t n) {
  auto* counter = static_cast<int*>(device.scratch("counter", sizeof(int)));
  cudaMemsetAsync(counter, 0, sizeof(int), nullptr);
  cudaMemsetAsync(output, 0, sizeof(int), nullptr);
  simt::launch(read_total_kernel, unsigned(n) / kThreads, kThreads, 0, nullptr, static_cast<const int*>(input), counter,
               static_cast<int*>(output));
}
RULE_CASE(read_total);

/// Every block shifts its numbers by one place; in place (mutant 1) the next block may have written first.
__global__ void shift_kernel(const int* from, int* to, int n) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  const int next = i + 1 < n ? from[i + 1] : 0;  // BUG 1
  __syncthreads();
  to[i] = next;
}
void shift(simt::Device& device, const void* input, void* output, int64_t n) {
  auto* copy = static_cast<int*>(device.upload("copy", input, size_t(n) * sizeof(int)));
  int* to = simt::mutant(1) ? copy : static_cast<int*>(output);
  simt::launch(shift_kernel, unsigned(n) / kThreads, kThreads, 0, nullptr, static_cast<const int*>(copy), to, int(n));
  if (simt::mutant(1)) device.download(copy, output, size_t(n) * sizeof(int));
}
RULE_CASE(shift);

/// Blocks write overlapping ranges (mutant 1), each the same values: still a race.
__global__ void overlap_kernel(int* output, int width) { output[blockIdx.x * 16 + threadIdx.x % width] = 7; }  // BUG 1
void overlap(simt::Device&, const void*, void* output, int64_t n) {
  simt::launch(overlap_kernel, unsigned(n) / 16, 16, 0, nullptr, static_cast<int*>(output), 16);
  if (simt::mutant(1)) simt::launch(overlap_kernel, unsigned(n) / 16 - 1, 32, 0, nullptr, static_cast<int*>(output), 32);
}
RULE_CASE(overlap);

/// One launch writes, the next reads what other blocks wrote: ordered.
__global__ void write_kernel(int* values) { values[blockIdx.x * kThreads + threadIdx.x] = int(blockIdx.x); }
__global__ void mirror_kernel(const int* values, int* output) {
  const int n = gridDim.x * kThreads, i = blockIdx.x * kThreads + threadIdx.x;
  output[i] = values[n - 1 - i];
}
void two_launches(simt::Device& device, const void*, void* output, int64_t n) {
  auto* values = static_cast<int*>(device.scratch("values", size_t(n) * sizeof(int)));
  simt::launch(write_kernel, unsigned(n) / kThreads, kThreads, 0, nullptr, values);
  simt::launch(mirror_kernel, unsigned(n) / kThreads, kThreads, 0, nullptr, values, static_cast<int*>(output));
}
RULE_CASE(two_launches);

/// Many blocks read a number in one launch; a later launch may change it, if the block that does is alone (not mutant 1).
__global__ void reread_kernel(int* value, int* output, bool change) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  output[i] = *value;
  __syncthreads();
  if (change && i == 0) *value = 5;  // BUG 1
}
void reread(simt::Device& device, const void* input, void* output, int64_t n) {
  auto* value = static_cast<int*>(device.upload("value", input, sizeof(int)));
  const unsigned blocks = unsigned(n) / kThreads;
  simt::launch(reread_kernel, blocks, kThreads, 0, nullptr, value, static_cast<int*>(output), false);
  simt::launch(reread_kernel, simt::mutant(1) ? blocks : 1, kThreads, 0, nullptr, value, static_cast<int*>(output), true);
}
RULE_CASE(reread);

/// Sums of floats by atomics depend on the order of blocks: the bits change with the seed, with no race.
__global__ void float_total_kernel(const float* input, float* total) {
  atomicAdd(total, input[blockIdx.x * kThreads + threadIdx.x]);
}
void float_total(simt::Device&, const void* input, void* output, int64_t n) {
  cudaMemsetAsync(output, 0, sizeof(float), nullptr);
  simt::launch(float_total_kernel, unsigned(n) / kThreads, kThreads, 0, nullptr, static_cast<const float*>(input),
               static_cast<float*>(output));
}
RULE_CASE(float_total);

/// The order in which threads come to an atomic counter, which a schedule decides.
__global__ void ticket_kernel(int* counter, int* output) {
  output[blockIdx.x * kThreads + threadIdx.x] = atomicAdd(counter, 1);
}
void ticket(simt::Device& device, const void*, void* output, int64_t n) {
  auto* counter = static_cast<int*>(device.scratch("counter", sizeof(int)));
  cudaMemsetAsync(counter, 0, sizeof(int), nullptr);
  simt::launch(ticket_kernel, unsigned(n) / kThreads, kThreads, 0, nullptr, counter, static_cast<int*>(output));
}
RULE_CASE(ticket);

/// The same in blocks of four warps, which come to a warp operation first.
__global__ void warp_ticket_kernel(int* counter, int* output) {
  __syncwarp();
  output[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(counter, 1);
}
void warp_ticket(simt::Device& device, const void*, void* output, int64_t n) {
  auto* counter = static_cast<int*>(device.scratch("counter", sizeof(int)));
  cudaMemsetAsync(counter, 0, sizeof(int), nullptr);
  simt::launch(warp_ticket_kernel, unsigned(n) / 128, 128, 0, nullptr, counter, static_cast<int*>(output));
}
RULE_CASE(warp_ticket);

}  // namespace
}  // namespace rules::race_blocks
