// One tiny kernel per rule of the PTX engine, right and wrong. The line that carries `BUG name` is where the report of
// kernel `name` must point.
#include <cassert>

#include "common/simt.h"

constexpr int kThreads = 128;

// Thread t reads what thread t + 32 of another warp wrote.
template <bool Wrong>
__global__ void missing_barrier(const float* x, float* y) {
  __shared__ float values[kThreads];
  const int t = threadIdx.x;
  values[t] = x[t];
  if (!Wrong) __syncthreads();
  y[t] = values[(t + 32) % kThreads];  // BUG missing_barrier
}

// The array is filled again while other warps may still read it.
template <bool Wrong>
__global__ void early_reuse(const float* x, float* y) {
  __shared__ float values[kThreads];
  const int t = threadIdx.x;
  for (int round = 0; round < 4; round++) {
    values[t] = x[round * kThreads + t];
    __syncthreads();
    y[round * kThreads + t] = values[(t + 32) % kThreads];
    if (!Wrong) __syncthreads();
  }
}

template <bool Wrong>
__global__ void unmasked_tail(const float* x, float* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (Wrong || i < n) y[i] = 2 * x[i];  // BUG unmasked_tail
}

template <bool Wrong>
__global__ void underrun(const float* x, float* y) {
  const int t = threadIdx.x;
  y[t] = t == 0 && !Wrong ? 0.f : x[t] - x[t - 1];  // BUG underrun
}

// Of two static arrays the first is overrun, which on a device would silently hit the second.
template <bool Wrong>
__global__ void static_overrun(const float* x, float* y) {
  __shared__ float first[kThreads];
  __shared__ float second[kThreads];
  const int t = threadIdx.x;
  second[t] = -x[t];
  first[Wrong ? t + 1 : t] = x[t];  // BUG static_overrun
  __syncthreads();
  y[t] = first[kThreads - 1 - t] + second[(t + 32) % kThreads];
}

template <bool Wrong>
__global__ void dynamic_overrun(const float* x, float* y) {
  float* values = simt::dyn_smem<float>();
  const int t = threadIdx.x;
  values[Wrong ? t + 1 : t] = x[t];  // BUG dynamic_overrun
  __syncthreads();
  y[t] = values[kThreads - 1 - t];
}

template <bool Wrong>
__global__ void offset_overflow(const float* x, float* y, int stride) {
  const int row = threadIdx.x;
  const long long offset = Wrong ? (long long)(int)((unsigned)row * (unsigned)stride) : (long long)row * stride;
  if (row > 0 && !Wrong) return;
  y[row] = x[offset];  // BUG offset_overflow
}

template <bool Wrong>
__global__ void misaligned(const float* x, float4* y) {
  y[threadIdx.x] = *reinterpret_cast<const float4*>(x + 4 * threadIdx.x + (Wrong ? 1 : 0));  // BUG misaligned
}

template <bool Wrong>
__global__ void skipped_shuffle(const float* x, float* y) {
  float v = x[threadIdx.x];
  if (!Wrong || threadIdx.x % 32 < 30) {
    v += __shfl_xor_sync(0xffffffffu, v, 1);  // BUG skipped_shuffle
  }
  y[threadIdx.x] = v;
  __syncthreads();
}

template <bool Wrong>
__global__ void inactive_source(const float* x, float* y) {
  const int lane = threadIdx.x % 32;
  float v = x[threadIdx.x];
  if (lane < 16) v = __shfl_sync(0x0000ffffu, v, Wrong ? 20 : 3);  // BUG inactive_source
  y[threadIdx.x] = v;
}

template <bool Wrong>
__global__ void outside_own_mask(const float* x, float* y) {
  y[threadIdx.x] = __shfl_sync(Wrong ? 0x0000ffffu : 0xffffffffu, x[threadIdx.x], 3);  // BUG outside_own_mask
}

template <bool Wrong>
__global__ void differing_masks(const float* x, float* y) {
  const int lane = threadIdx.x % 32;
  const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  const unsigned mask = Wrong && lane == 5 ? 0xffffffffu : half;
  y[threadIdx.x] = __shfl_xor_sync(mask, x[threadIdx.x], 1);  // BUG differing_masks
}

template <bool Wrong>
__global__ void divergent_barrier(const float* x, float* y) {
  __shared__ float values[kThreads];
  const int t = threadIdx.x;
  values[t] = x[t];
  if (!Wrong || t % 32 != 7) __syncthreads();  // BUG divergent_barrier
  y[t] = values[(t + 32) % kThreads];
  __syncthreads();
}

template <bool Wrong>
__global__ void barriers_differ(const float* x, float* y) {
  const int t = threadIdx.x, warp = t / 32;
  const int rounds = Wrong && warp == 1 ? 3 : 2;
  float sum = 0;
#pragma unroll 1
  for (int i = 0; i < rounds; i++) {
    sum += x[t];
    __syncthreads();  // BUG barriers_differ
  }
  y[t] = sum;
}

template <bool Wrong>
__global__ void exit_before_barrier(const float* x, float* y) {
  __shared__ float values[kThreads];
  const int t = threadIdx.x;
  values[t] = x[t];
  if (Wrong && t / 32 == 2) return;
  __syncthreads();  // BUG exit_before_barrier
  y[t] = values[(t + 32) % kThreads];
}

__device__ void copy_row(float* shared, const float* global) {
  ptx::cp_async16(shared + 4 * threadIdx.x, global + 4 * threadIdx.x);
  ptx::cp_async_commit();
}

template <bool Wrong>
__global__ void short_wait(const float* x, float* y) {
  __shared__ __align__(16) float values[2][4 * kThreads];
  copy_row(values[0], x);
  copy_row(values[1], x + 4 * kThreads);
  ptx::cp_async_wait<Wrong ? 1 : 0>();
  __syncthreads();
  const int t = threadIdx.x;
  y[t] = values[1][t];  // BUG short_wait
}

template <bool Wrong>
__global__ void store_on_copy(const float* x, float* y) {
  __shared__ __align__(16) float values[4 * kThreads];
  copy_row(values, x);
  if (!Wrong) ptx::cp_async_wait<0>();
  values[4 * threadIdx.x] = 1.f;  // BUG store_on_copy
  ptx::cp_async_wait<0>();
  __syncthreads();
  y[threadIdx.x] = values[threadIdx.x];
}

template <bool Wrong>
__global__ void misaligned_copy(const float* x, float* y) {
  __shared__ __align__(16) float values[4 * kThreads];
  ptx::cp_async16(values + 4 * threadIdx.x, x + 4 * threadIdx.x + (Wrong ? 1 : 0));  // BUG misaligned_copy
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  y[threadIdx.x] = values[4 * threadIdx.x];
}

template <bool Wrong>
__global__ void uninitialised_shared(const float* x, float* y) {
  __shared__ float values[kThreads];
  const int t = threadIdx.x;
  if (!Wrong || t != 40) values[t] = x[t];
  __syncthreads();
  y[t] = values[kThreads - 1 - t];  // BUG uninitialised_shared
}

template <bool Wrong>
__global__ void uninitialised_global(float* x, float* y) {
  const int t = threadIdx.x;
  if (!Wrong || t != 40) x[t] = t;
  __syncthreads();
  y[t] = x[kThreads - 1 - t];  // BUG uninitialised_global
}

template <bool Wrong>
__global__ void lost_update(int* y) {
  __shared__ int count;
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  for (int i = 0; i < 8; i++) {
    if (threadIdx.x % 32 == 0) {
      if (Wrong) {
        volatile int* cell = &count;
        *cell = *cell + 1;
      } else {
        atomicAdd(&count, 1);
      }
    }
  }
  __syncthreads();
  y[threadIdx.x] = count;
}

template <bool Wrong>
__global__ void part_of_a_warp(const __half* x, float* y) {
  __shared__ __align__(16) __half values[256];
  const int t = threadIdx.x;
  for (int i = t; i < 256; i += 32) values[i] = x[i];
  __syncwarp();
  uint32_t r[4] = {};
  if (!Wrong || t < 31) ptx::ldmatrix_x4(r, values + 8 * t);  // BUG part_of_a_warp
  y[t] = __half2float(__ushort_as_half(r[0] & 0xffff));
}

template <bool Wrong>
__global__ void failing_assert(const float* x, float* y) {
  assert(!Wrong || x[threadIdx.x] < 10.f);  // BUG failing_assert
  y[threadIdx.x] = x[threadIdx.x];
}

template <bool Wrong>
__global__ void endless(const int* x, int* y) {
  int n = x[threadIdx.x];
#pragma unroll 1
  while (n > 0) n = Wrong ? n + (n % 2 ? -1 : 1) : n - 1;  // BUG endless
  y[threadIdx.x] = n;
}

#define BOTH(name, ...)                              \
  template __global__ void name<false>(__VA_ARGS__); \
  template __global__ void name<true>(__VA_ARGS__)
BOTH(missing_barrier, const float*, float*);
BOTH(early_reuse, const float*, float*);
BOTH(unmasked_tail, const float*, float*, int);
BOTH(underrun, const float*, float*);
BOTH(static_overrun, const float*, float*);
BOTH(dynamic_overrun, const float*, float*);
BOTH(offset_overflow, const float*, float*, int);
BOTH(misaligned, const float*, float4*);
BOTH(skipped_shuffle, const float*, float*);
BOTH(inactive_source, const float*, float*);
BOTH(outside_own_mask, const float*, float*);
BOTH(differing_masks, const float*, float*);
BOTH(divergent_barrier, const float*, float*);
BOTH(barriers_differ, const float*, float*);
BOTH(exit_before_barrier, const float*, float*);
BOTH(short_wait, const float*, float*);
BOTH(store_on_copy, const float*, float*);
BOTH(misaligned_copy, const float*, float*);
BOTH(uninitialised_shared, const float*, float*);
BOTH(uninitialised_global, float*, float*);
BOTH(lost_update, int*);
BOTH(part_of_a_warp, const __half*, float*);
BOTH(failing_assert, const float*, float*);
BOTH(endless, const int*, int*);
