// An interpreter of small programs of accesses and synchronisations: test_engine_happens_before.py draws them and
// compares the verdict of the hooks build with vector clocks.
#include "rules/case.h"

namespace rules::program {
namespace {

constexpr int kBlocks = 2, kThreads = 64, kBytes = 8;

enum Kind : int32_t { kNothing, kRead, kWrite, kAtomic, kBarrier, kSyncWarp };

/// For accesses the argument is space << 16 | size << 8 | offset; for kSyncWarp it is the mask.
struct Step {
  int32_t kind;
  uint32_t argument;
};

SIMT_DEVICE int access(Kind kind, uint8_t* at, int size) {
  switch (size) {
    case 1:
      if (kind == kWrite) *at = 1;
      return kind == kRead ? *at : 0;
    case 2: {
      auto* two = reinterpret_cast<uint16_t*>(at);
      if (kind == kWrite) *two = 2;
      return kind == kRead ? *two : 0;
    }
    default: {
      auto* four = reinterpret_cast<int*>(at);
      if (kind == kWrite) *four = 3;
      if (kind == kAtomic) return atomicAdd(four, 1);
      return kind == kRead ? *four : 0;
    }
  }
}

__global__ void program_kernel(const Step* program, uint8_t* global, int* output, int steps) {
  SIMT_SHARED(int[kBytes / 4], shared);
  const int t = threadIdx.x;
  if (t < kBytes / 4) shared[t] = 0;
  __syncthreads();
  int seen = 0;
  for (int i = 0; i < steps; ++i) {
    const Step step = program[(i * kBlocks + blockIdx.x) * kThreads + t];
    uint8_t* space = step.argument >> 16 & 1 ? global : reinterpret_cast<uint8_t*>(shared);
    if (step.kind == kBarrier) {
      __syncthreads();
    } else if (step.kind == kSyncWarp) {
      __syncwarp(step.argument);
    } else if (step.kind != kNothing) {
      seen += access(Kind(step.kind), space + (step.argument & 0xff), int(step.argument >> 8 & 0xff));
    }
  }
  output[blockIdx.x * kThreads + t] = seen;
}
void program(simt::Device& device, const void* input, void* output, int64_t n) {
  auto* global = static_cast<uint8_t*>(device.scratch("global", kBytes));
  cudaMemsetAsync(global, 0, kBytes, nullptr);
  simt::launch(program_kernel, kBlocks, kThreads, 0, nullptr, static_cast<const Step*>(input), global,
               static_cast<int*>(output), int(n));
}
RULE_CASE(program);

}  // namespace
}  // namespace rules::program
