#pragma once
// What a kernel is given to run with. Kernels own no threads, no memory and no matrix library.
#include "common/isa.h"
#include "common/types.h"

namespace longspan::kernels {

/// Runs `task(context, index, worker)` for every index in [0, tasks), on up to `workers` threads that claim indices from
/// one counter in increasing order, so that a task may wait for tasks before it. `worker` is in [0, workers) and unique
/// among running tasks.
struct Parallel {
  void* self;
  int workers;
  void (*run)(void* self, int64_t tasks, void (*task)(void* context, int64_t index, int worker), void* context);
};

/// C[M,N] = op(A) op(B) + beta C with op(A) [M,K] and op(B) [K,N]; row strides in elements, columns contiguous.
/// A and B are stored as [M,K] and [K,N], or as [K,M] and [N,K] when transposed. C is not read when beta is 0.
/// All three are float64, or each is float32 or bfloat16: then sums are in float32 and rounded once.
struct GemmArgs {
  bool transpose_a, transpose_b;
  int64_t m, n, k;
  const void* a;
  int64_t lda;
  const void* b;
  int64_t ldb;
  double beta;
  void* c;
  int64_t ldc;
  DType dtype_a, dtype_b, dtype_c;
};

struct Gemm {
  void* self;
  void (*run)(void* self, const GemmArgs& args);
};

/// Scratch that lives until the kernel's caller returns; 64-byte aligned, not initialised.
struct Workspace {
  void* self;
  void* (*get)(void* self, int64_t bytes);
};

/// What a CUDA kernel is given to run with. Scratch is freed by the owner in the stream's order; kernels never synchronise.
/// `gemm` multiplies on the same stream; null for kernels that need none.
struct CudaContext {
  void* stream;  // cudaStream_t
  Workspace workspace;
  Gemm gemm{};
};

struct Context {
  Parallel parallel;
  Gemm gemm;
  Workspace workspace;
  Isa isa;
};

/// Runs a lambda `(int64_t index, int worker)` on the context's threads.
template <class F>
void parallel_for(const Context& context, int64_t tasks, F&& body) {
  if (tasks <= 0) return;
  auto trampoline = [](void* self, int64_t index, int worker) { (*static_cast<F*>(self))(index, worker); };
  context.parallel.run(context.parallel.self, tasks, trampoline, &body);
}

}  // namespace longspan::kernels
