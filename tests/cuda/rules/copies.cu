// cp.async: groups, waits and what may happen meanwhile.
#include "rules/case.h"

namespace rules::copies {
namespace {

constexpr int kThreads = 32, kChunk = 4;  // 16 bytes a thread
constexpr int kTile = kThreads * kChunk;

/// Doubles tiles of floats through two buffers, the next tile's copy in flight meanwhile; the last tile may be ragged.
__global__ void pipeline_kernel(const float* input, float* output, int n) {
  float* buffers = simt::dyn_smem<float>();
  const int t = threadIdx.x, tiles = (n + kTile - 1) / kTile;
  const auto issue = [&](int tile) {
    if (tile < tiles) {
      const int first = tile * kTile + t * kChunk, left = n - first;
      int bytes = left <= 0 ? 0 : left < kChunk ? left * 4 : 16;
      if (simt::mutant(5)) bytes = 16;
      float* buffer = buffers + tile % 2 * kTile;
      ptx::cp_async16(buffer + t * kChunk + (simt::mutant(7) ? 1 : 0), input + first, bytes);  // BUG 5 6 7 9
    }
    if (!simt::mutant(8)) ptx::cp_async_commit();
  };
  issue(0);
  for (int tile = 0; tile < tiles; ++tile) {
    if (simt::mutant(3)) buffers[tile % 2 * kTile + t * kChunk] = 1.0f;  // BUG 3
    issue(tile + 1);
    if (simt::mutant(1))
      ptx::cp_async_wait<2>();  // one group more than was meant stays in flight
    else if (!simt::mutant(2))
      ptx::cp_async_wait<1>();
    if (!simt::mutant(4)) __syncthreads();
    for (int i = 0; i < kChunk; ++i) {
      // Another thread's chunk, so that the wait alone is not enough.
      const int element = i * kThreads + t, at = tile * kTile + element;
      const float value = buffers[tile % 2 * kTile + element];  // BUG 1 2 4 8
      if (at < n) output[at] = 2.0f * value;
    }
    if (!simt::mutant(9)) __syncthreads();  // before the buffer is filled again
  }
}
void pipeline(simt::Device&, const void* input, void* output, int64_t n) {
  const auto* from = static_cast<const float*>(input) + (simt::mutant(6) ? 1 : 0);
  simt::launch(pipeline_kernel, 1, kThreads, 2 * kTile * sizeof(float), nullptr, from, static_cast<float*>(output), int(n));
}
RULE_CASE(pipeline);

/// Copies beyond the shared array (1), from shared memory (2), to global memory (3), with a size above 16 (4).
__global__ void misuse_kernel(const float* input, float* output) {
  float* shared = simt::dyn_smem<float>();
  const int t = threadIdx.x;
  float* target = shared + t * kChunk + (simt::mutant(1) ? kChunk : 0);
  const float* source = input + t * kChunk;
  shared[kTile + t] = 0.0f;
  if (simt::mutant(2)) source = shared + kTile;
  if (simt::mutant(3)) target = output + t * kChunk;
  ptx::cp_async16(simt::mutant(1) ? target + kTile : target, source, simt::mutant(4) ? 20 : 16);  // BUG 1 2 3 4
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  __syncthreads();
  for (int i = 0; i < kChunk; ++i) output[i * kThreads + t] = shared[i * kThreads + t];
}
void misuse(simt::Device&, const void* input, void* output, int64_t) {
  simt::launch(misuse_kernel, 1, kThreads, 2 * kTile * sizeof(float), nullptr, static_cast<const float*>(input),
               static_cast<float*>(output));
}
RULE_CASE(misuse);

}  // namespace
}  // namespace rules::copies
