#pragma once
// Device memory in a stream's order, for callers that have no allocator of their own (torch has one).
#include "common/context.h"

namespace longspan::kernels {

/// Makes a CUDA device current while it lives. Throws std::runtime_error with CUDA's text when there is no such device.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
};

/// `bytes` of the current device's memory, to be used and freed in the order of `stream` (cudaMallocAsync); no
/// synchronisation. Throws std::runtime_error with CUDA's text.
void* device_allocate(int64_t bytes, void* stream);
void device_free(void* memory, void* stream) noexcept;

}  // namespace longspan::kernels
