// Launches that a GPU refuses, and how mutants are chosen.
#include "rules/case.h"

namespace rules::launch {
namespace {

__global__ void number_kernel(int* output, int n) {
  const int i = blockIdx.x * blockDim.x * blockDim.y + threadIdx.y * blockDim.x + threadIdx.x;
  if (i < n) output[i] = simt::mutant(9) ? -i : i;
}
void number(simt::Device&, const void*, void* output, int64_t n) {
  dim3 grid(unsigned(n + 63) / 64), block(16, 4);
  size_t smem = 0;
  if (simt::mutant(1)) block = dim3(32, 33);
  if (simt::mutant(2)) smem = (227 << 10) + 1;
  if (simt::mutant(3)) grid = dim3(0);
  if (simt::mutant(4)) grid = dim3(1, 65536);
  if (simt::mutant(5)) block = dim3(1, 1, 128);
  simt::check(simt::launch(number_kernel, grid, block, smem, nullptr, static_cast<int*>(output), int(n)), "number");  // BUG
}
RULE_CASE(number);

/// Static shared memory: 24 KiB twice, or with mutant 1 half as much again.
__global__ void static_bytes_kernel(int* output) {
  SIMT_SHARED(int[6144], first);
  SIMT_SHARED(int[6144], second);
  first[threadIdx.x] = second[threadIdx.x] = 1;
  if (simt::mutant(1)) {
    SIMT_SHARED(int[6144], third);
    third[threadIdx.x] = 1;
  }
  output[threadIdx.x] = 1;
}
void static_bytes(simt::Device&, const void*, void* output, int64_t) {
  simt::launch(static_bytes_kernel, 1, 32, 0, nullptr, static_cast<int*>(output));
}
RULE_CASE(static_bytes);

/// A crash of host code, which is no kernel's fault and no report.
void host_crash(simt::Device&, const void*, void*, int64_t n) {
  volatile int* nothing = reinterpret_cast<volatile int*>(n);
  *nothing = 1;
}
RULE_CASE(host_crash);

/// Places of all threads of a three-dimensional launch: block and thread packed into one number each.
__global__ void places_kernel(int* output) {
  const int threads = blockDim.x * blockDim.y * blockDim.z;
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  output[block * threads + thread] =
      int(blockIdx.x + 10 * blockIdx.y + 100 * blockIdx.z + 1000 * threadIdx.x + 10000 * threadIdx.y + 100000 * threadIdx.z);
}
void places(simt::Device&, const void*, void* output, int64_t) {
  simt::launch(places_kernel, dim3(2, 3, 4), dim3(5, 3, 2), 0, nullptr, static_cast<int*>(output));
}
RULE_CASE(places);

}  // namespace
}  // namespace rules::launch
