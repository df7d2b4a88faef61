#pragma once
// CUDA calls without torch: a stream by its DLPack number, scratch in the stream's order.
#include <vector>

#include "host/array.h"
#include "host/pool.h"
#include "kernels/common/context.h"

// A call of a CUDA entry point: nothing in a build without CUDA, where no context for it can be made.
#ifdef LONGSPAN_WITH_CUDA
#define LONGSPAN_CUDA_ENTRY(call) call
#else
#define LONGSPAN_CUDA_ENTRY(call) (void)context
#endif

namespace longspan::host {

/// The context of one CUDA kernel call on `device`; its scratch is freed, in the stream's order, with it.
/// Throws py::value_error when this build has no CUDA kernels.
class HostCudaContext {
 public:
  HostCudaContext(int device, int64_t stream);
  ~HostCudaContext();
  HostCudaContext(const HostCudaContext&) = delete;
  kernels::CudaContext context();

 private:
  static void* get(void* self, int64_t bytes);
  struct State;
  State* state_;
};

/// Runs `on_cpu(Context)` or `on_cuda(CudaContext)`, wherever the array is, without Python's lock.
template <class OnCpu, class OnCuda>
void run_on(const Array& array, int threads, int64_t stream, OnCpu&& on_cpu, OnCuda&& on_cuda) {
  if (array.cuda) {
    HostCudaContext cuda(array.device, stream);
    const py::gil_scoped_release release;
    return on_cuda(cuda.context());
  }
  HostContext host(threads);
  const py::gil_scoped_release release;
  on_cpu(host.context());
}

}  // namespace longspan::host
