// Accesses outside arrays, to arrays that are gone, and to memory that is no array.
#include "rules/case.h"

namespace rules::bounds {
namespace {

constexpr int kThreads = 32;

__global__ void shared_static_kernel(const int* input, int* output) {
  SIMT_SHARED(int[kThreads], values);
  const int t = threadIdx.x;
  values[t] = input[t];
  if (simt::mutant(1)) values[t + 1] = t;  // BUG 1
  __syncthreads();
  output[t] = values[t];
  if (simt::mutant(2)) output[t] = values[t - 1];  // BUG 2
}
void shared_static(simt::Device&, const void* input, void* output, int64_t) {
  simt::launch(shared_static_kernel, 1, kThreads, 0, nullptr, static_cast<const int*>(input), static_cast<int*>(output));
}
RULE_CASE(shared_static);

__global__ void shared_dynamic_kernel(const int* input, int* output, int n) {
  int* values = simt::dyn_smem<int>();
  const int t = threadIdx.x;
  values[t] = input[t];
  if (simt::mutant(1) && t == 0) values[n] = 1;          // BUG 1
  if (simt::mutant(2) && t == 0) values[-1] = 1;         // BUG 2
  if (simt::mutant(3) && t == 0) values[80000] = 1;      // BUG 3
  if (simt::mutant(4) && t == 0) values[0] = values[n];  // BUG 4
  __syncthreads();
  output[t] = values[n - 1 - t];
}
void shared_dynamic(simt::Device&, const void* input, void* output, int64_t n) {
  simt::launch(shared_dynamic_kernel, 1, unsigned(n), size_t(n) * sizeof(int), nullptr, static_cast<const int*>(input),
               static_cast<int*>(output), int(n));
}
RULE_CASE(shared_dynamic);

/// Mutants 1 to 4 miss a global array by one element, 5 and 6 by far.
__global__ void global_kernel(const int* input, int* output, int n) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= n) return;
  output[i] = input[i];
  if (i > 0) return;
  if (simt::mutant(1)) output[n] = 1;                        // BUG 1
  if (simt::mutant(2)) output[-1] = 1;                       // BUG 2
  if (simt::mutant(3)) output[0] = input[n];                 // BUG 3
  if (simt::mutant(4)) output[0] = input[-1];                // BUG 4
  if (simt::mutant(5)) output[0] = input[int64_t(1) << 31];  // BUG 5
  if (simt::mutant(6)) output[int64_t(1) << 36] = 1;         // BUG 6
}
void global(simt::Device&, const void* input, void* output, int64_t n) {
  simt::launch(global_kernel, unsigned(n + kThreads - 1) / kThreads, kThreads, 0, nullptr, static_cast<const int*>(input),
               static_cast<int*>(output), int(n));
}
RULE_CASE(global);

/// A ragged tail without its mask (1); a grid with a block too few (2) or too many (3).
__global__ void tail_kernel(const float* input, float* output, int n) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  const bool masked = !simt::mutant(1) && !simt::mutant(3);
  if (masked && i >= n) return;
  output[i] = 2.0f * input[i];  // BUG 1 3
}
void tail(simt::Device&, const void* input, void* output, int64_t n) {
  unsigned blocks = unsigned(n + kThreads - 1) / kThreads;
  if (simt::mutant(2)) --blocks;
  if (simt::mutant(3)) ++blocks;
  simt::launch(tail_kernel, blocks, kThreads, 0, nullptr, static_cast<const float*>(input), static_cast<float*>(output),
               int(n));
}
RULE_CASE(tail);

/// A row offset that needs 64 bits, into addresses that no memory stands behind until it is touched.
__global__ void far_rows_kernel(float* rows, float* output, int row, int stride) {
  const int t = threadIdx.x;
  float* at = simt::mutant(1) ? rows + row * stride : rows + int64_t(row) * stride;  // BUG 1
  at[t] = float(t);                                                                  // LANDS 1
  output[t] = at[t];
}
void far_rows(simt::Device& device, const void*, void* output, int64_t n) {
  const int stride = 1 << 20, row = int(n);
  auto* rows = static_cast<float*>(device.reserve("rows", size_t(row + 1) * stride * sizeof(float)));
  simt::launch(far_rows_kernel, 1, kThreads, 0, nullptr, rows, static_cast<float*>(output), row, stride);
}
RULE_CASE(far_rows);

/// Scratch that is released before the launch that reads it (1), and scratch of the run before this one (2).
__global__ void read_kernel(const int* values, int* output) { output[threadIdx.x] = values[threadIdx.x]; }  // BUG 1 2
void stale(simt::Device& device, const void* input, void* output, int64_t n) {
  static void* previous;
  void* scratch = device.upload("scratch", input, size_t(n) * sizeof(int));
  if (simt::mutant(1)) device.release(scratch);
  const void* values = simt::mutant(2) && previous ? previous : scratch;
  previous = scratch;
  simt::launch(read_kernel, 1, kThreads, 0, nullptr, static_cast<const int*>(values), static_cast<int*>(output));
}
RULE_CASE(stale);

/// Host memory handed to a kernel (1), and a pointer to another thread's local variable (2). Constants may be read.
__constant__ const int kTable[4] = {3, 1, 4, 1};
__global__ void pointers_kernel(const int* values, int* output) {
  SIMT_SHARED(const int* [1], shared);
  const int t = threadIdx.x;
  const int own = values[t];  // BUG 1
  if (t == 0) shared[0] = &own;
  __syncthreads();
  output[t] = own + kTable[t % 4];
  if (simt::mutant(2)) output[t] = *shared[0];  // BUG 2
  __syncthreads();
}
void pointers(simt::Device&, const void* input, void* output, int64_t n) {
  static int host[64];
  memcpy(host, input, size_t(n) * sizeof(int));
  int* heap = new int[size_t(n)];
  memcpy(heap, input, size_t(n) * sizeof(int));
  const int* values = simt::mutant(1) ? heap : static_cast<const int*>(input);
  simt::launch(pointers_kernel, 1, kThreads, 0, nullptr, values, static_cast<int*>(output));
  delete[] heap;
}
RULE_CASE(pointers);

/// Local memory beyond what the emulation gives a thread.
__global__ void deep_kernel(int* output, int depth) {
  volatile char local[256 << 10];
  if (depth > 0) local[0] = 1;  // BUG 1
  output[threadIdx.x] = int(threadIdx.x);
}
void deep(simt::Device&, const void*, void* output, int64_t) {
  if (simt::mutant(1)) simt::launch(deep_kernel, 1, kThreads, 0, nullptr, static_cast<int*>(output), 1);
}
RULE_CASE(deep);

}  // namespace
}  // namespace rules::bounds
