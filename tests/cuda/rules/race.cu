// Races within a block.
#include "rules/case.h"

namespace rules::race {
namespace {

constexpr int kThreads = 128;

/// Reverses tiles of 128 numbers through one shared buffer.
__global__ void reverse_kernel(const int* input, int* output, int tiles) {
  SIMT_SHARED(int[kThreads], tile);
  const int t = threadIdx.x;
  for (int i = 0; i < tiles; ++i) {
    tile[t] = input[i * kThreads + t];  // BUG 2
    if (!simt::mutant(1)) __syncthreads();
    output[i * kThreads + t] = tile[kThreads - 1 - t];  // BUG 1
    if (!simt::mutant(2)) __syncthreads();
  }
}
void reverse(simt::Device&, const void* input, void* output, int64_t n) {
  simt::launch(reverse_kernel, 1, kThreads, 0, nullptr, static_cast<const int*>(input), static_cast<int*>(output),
               int(n) / kThreads);
}
RULE_CASE(reverse);

/// Lanes exchange values through shared memory: __syncwarp orders them, and only the lanes of its mask.
__global__ void exchange_kernel(const int* input, int* output) {
  SIMT_SHARED(int[kThreads], values);
  const int t = threadIdx.x, lane = t % 32;
  values[t] = input[t];
  if (!simt::mutant(1)) {
    // Halves apart suffice for an exchange with a neighbour, and not for one across the halves.
    const uint32_t half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
    __syncwarp(half);
  }
  output[t] = values[t ^ (simt::mutant(2) ? 16 : 5)];  // BUG 1 2
}
void exchange(simt::Device&, const void* input, void* output, int64_t) {
  simt::launch(exchange_kernel, 1, kThreads, 0, nullptr, static_cast<const int*>(input), static_cast<int*>(output));
}
RULE_CASE(exchange);

/// A lane that is told by another: a -> b by one mask, b -> c by another orders a before c.
__global__ void relay_kernel(const int* input, int* output) {
  SIMT_SHARED(int[1], value);
  const int lane = threadIdx.x;
  if (lane == 0) value[0] = input[0];
  if (lane < 2) __syncwarp(0x3);
  if (!simt::mutant(1) && (lane == 1 || lane == 2)) __syncwarp(0x6);
  if (lane == 2) output[0] = value[0];  // BUG 1
}
void relay(simt::Device&, const void* input, void* output, int64_t) {
  simt::launch(relay_kernel, 1, 32, 0, nullptr, static_cast<const int*>(input), static_cast<int*>(output));
}
RULE_CASE(relay);

/// Readers of several intervals before a write: the write must be ordered after all of them.
__global__ void late_write_kernel(const int* input, int* output) {
  SIMT_SHARED(int[1], value);
  const int lane = threadIdx.x;
  if (lane == 0) value[0] = input[0];
  __syncwarp();
  int seen = 0;
  if (lane == 5) seen = value[0];
  if (lane != 5) __syncwarp(~(1u << 5));
  if (lane == 6) seen = value[0];
  if (simt::mutant(1) ? lane == 6 || lane == 7 : lane >= 5 && lane <= 7) __syncwarp(simt::mutant(1) ? 0xc0u : 0xe0u);
  if (lane == 7) value[0] = 1;  // BUG 1
  output[lane] = seen;
}
void late_write(simt::Device&, const void* input, void* output, int64_t) {
  simt::launch(late_write_kernel, 1, 32, 0, nullptr, static_cast<const int*>(input), static_cast<int*>(output));
}
RULE_CASE(late_write);

/// Counts values in shared bins.
__global__ void histogram_kernel(const int* input, int* output, int n) {
  SIMT_SHARED(int[8], bins);
  const int t = threadIdx.x;
  if (t < 8) bins[t] = 0;
  __syncthreads();
  for (int i = t; i < n; i += kThreads) {
    if (simt::mutant(1)) {
      const int old = bins[input[i]];
      __syncwarp();
      bins[input[i]] = old + 1;  // BUG 1
    } else {
      atomicAdd(&bins[input[i]], 1);
    }
  }
  if (!simt::mutant(2)) __syncthreads();
  if (t < 8) output[t] = bins[t];  // BUG 2
}
void histogram(simt::Device&, const void* input, void* output, int64_t n) {
  simt::launch(histogram_kernel, 1, kThreads, 0, nullptr, static_cast<const int*>(input), static_cast<int*>(output), int(n));
}
RULE_CASE(histogram);

/// Two threads write neighbouring bytes of one word, which is no race; mutant 1 writes the same byte.
__global__ void bytes_kernel(int* output) {
  SIMT_SHARED(uint8_t[64], bytes);
  const int t = threadIdx.x;
  bytes[simt::mutant(1) ? t / 2 : t] = uint8_t(simt::mutant(1) ? t / 2 : t);  // BUG 1
  __syncthreads();
  output[t] = bytes[simt::mutant(1) ? t / 2 : t];
}
void bytes(simt::Device&, const void*, void* output, int64_t) {
  simt::launch(bytes_kernel, 1, 64, 0, nullptr, static_cast<int*>(output));
}
RULE_CASE(bytes);

/// A large copy inside a kernel, which the compiler may turn into a call of memcpy.
struct Large {
  int values[50];
};
__global__ void large_copy_kernel(const Large* input, Large* output) {
  SIMT_SHARED(Large[2], staged);
  const int t = threadIdx.x;
  if (t < 2) staged[t] = input[t];
  if (!simt::mutant(1)) __syncthreads();
  if (t >= 32 && t < 34) output[t - 32] = staged[t - 32];  // BUG 1
}
void large_copy(simt::Device&, const void* input, void* output, int64_t) {
  simt::launch(large_copy_kernel, 1, 64, 0, nullptr, static_cast<const Large*>(input), static_cast<Large*>(output));
}
RULE_CASE(large_copy);

}  // namespace
}  // namespace rules::race
