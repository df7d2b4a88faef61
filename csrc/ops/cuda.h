#pragma once
// The CUDA side of an op's call: the tensors' device, torch's current stream there, torch's memory as scratch.
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include "ops/aten_gemm.h"
#include "ops/tensor.h"

namespace longspan::ops {

/// torch's current stream on a device. Only CUDA builds of torch have the shim (in libtorch_cuda, which is loaded by then),
/// so it is looked up when it is needed and the same library loads with every torch.
inline void* current_cuda_stream(int32_t device) {
  using Shim = int32_t (*)(int32_t device, void** stream);
  static const auto shim = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library ? reinterpret_cast<Shim>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  STD_TORCH_CHECK(shim, "longspan: libtorch_cuda.so has no aoti_torch_get_current_cuda_stream; torch 2.10 or newer has it");
  void* stream = nullptr;
  STD_TORCH_CHECK(shim(device, &stream) == 0, "longspan: torch gave no current CUDA stream");
  return stream;
}

/// Makes the tensors' device current, and lends torch's memory to kernels. Scratch is freed when the call returns: torch's
/// allocator hands it out again in the order of the same stream.
class TorchCudaContext {
 public:
  explicit TorchCudaContext(const Tensor& like)
      : like_(like), guard_(like.get_device_index()), stream_(current_cuda_stream(like.get_device_index())) {}

  kernels::CudaContext context() { return {stream_, {this, &get}, gemm_.gemm()}; }

 private:
  static void* get(void* self, int64_t bytes) {
    auto* owner = static_cast<TorchCudaContext*>(self);
    owner->blocks_.push_back(torch::stable::new_empty(owner->like_, {bytes}, ScalarType::Byte));
    return owner->blocks_.back().mutable_data_ptr();
  }

  const Tensor& like_;
  AtenGemm gemm_{like_};
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_;
  std::vector<Tensor> blocks_;
};

}  // namespace longspan::ops
