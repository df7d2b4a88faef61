#include "host/device.h"

#ifdef LONGSPAN_WITH_CUDA
#include "kernels/common/device_memory.h"
#endif

namespace longspan::host {

#ifdef LONGSPAN_WITH_CUDA

namespace {
/// DLPack's numbers of CUDA streams are CUDA's own handles; 0 would be ambiguous there, 1 is the legacy default stream.
void* stream_of(int64_t number) { return reinterpret_cast<void*>(number); }
}  // namespace

struct HostCudaContext::State {
  kernels::DeviceGuard guard;
  void* stream;
  std::vector<void*> blocks;
};

HostCudaContext::HostCudaContext(int device, int64_t stream)
    : state_(new State{kernels::DeviceGuard(device), stream_of(stream), {}}) {}
HostCudaContext::~HostCudaContext() {
  for (void* block : state_->blocks) kernels::device_free(block, state_->stream);
  delete state_;
}
kernels::CudaContext HostCudaContext::context() { return {state_->stream, {this, &get}}; }

void* HostCudaContext::get(void* self, int64_t bytes) {
  State& state = *static_cast<HostCudaContext*>(self)->state_;
  state.blocks.push_back(kernels::device_allocate(bytes, state.stream));
  return state.blocks.back();
}

#else

struct HostCudaContext::State {};
HostCudaContext::HostCudaContext(int, int64_t) : state_(nullptr) {
  throw py::value_error(
      "the arrays are in CUDA memory, but this build has no CUDA kernels; build where nvcc is on the PATH");
}
HostCudaContext::~HostCudaContext() = default;
kernels::CudaContext HostCudaContext::context() { return {}; }
void* HostCudaContext::get(void*, int64_t) { return nullptr; }

#endif

}  // namespace longspan::host
