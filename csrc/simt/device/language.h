#pragma once
// The words that CUDA adds to C++, and the toolkit's host headers.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <source_location>

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __launch_bounds__
#undef __grid_constant__
#undef __forceinline__
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __launch_bounds__(...)
#define __grid_constant__
#define __forceinline__ inline
// A bare __shared__ would be an ordinary variable that no check sees: it does not compile.
#define __shared__ simt_bare_shared_is_not_checked_use_SIMT_SHARED_or_dyn_smem

#define SIMT_DEVICE inline

// Parts of the engine that are compiled into kernel files; the sanitizers see kernels, not the engine.
#define SIMT_ENGINE inline __attribute__((no_sanitize("thread", "address", "undefined")))

namespace simt {

/// The source position of whoever calls the function that has this as its default argument.
using Caller = std::source_location;

template <class T>
struct Identity {
  using type = T;
};

/// Whether planted bug `number` is active in this run.
[[gnu::const]] bool mutant(int number);

}  // namespace simt
