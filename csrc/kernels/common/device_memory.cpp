// Host code of CUDA builds; see device_memory.h.
#include "common/device_memory.h"

#include "common/simt.h"

namespace longspan::kernels {

DeviceGuard::DeviceGuard(int device) {
  simt::check(cudaGetDevice(&previous_), "cudaGetDevice");
  simt::check(cudaSetDevice(device), "cudaSetDevice");
}
DeviceGuard::~DeviceGuard() { cudaSetDevice(previous_); }

void* device_allocate(int64_t bytes, void* stream) {
  void* memory = nullptr;
  simt::check(cudaMallocAsync(&memory, size_t(bytes), static_cast<cudaStream_t>(stream)), "cudaMallocAsync");
  return memory;
}

void device_free(void* memory, void* stream) noexcept { cudaFreeAsync(memory, static_cast<cudaStream_t>(stream)); }

}  // namespace longspan::kernels
