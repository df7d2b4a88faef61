// The few functions of the CUDA runtime that launch code may call. Everything is synchronous and on one device.
#include <cuda_runtime.h>

#include <cstring>

#include "simt/engine/machine.h"
#include "simt/engine/report.h"
#include "simt/engine/shadow.h"
#include "simt/engine/touch.h"

namespace {

/// Reports arguments that are not device memory, as the driver would refuse them.
bool device_array(const void* address, size_t bytes, const char* what) {
  if (bytes == 0 || simt::find_array(address, bytes)) return true;
  if (simt::Report* made = simt::report(simt::rule::kOutOfBounds, {}, {}, uintptr_t(address))) {
    made->message = std::string(what) + " of " + std::to_string(bytes) + " bytes: " + simt::address_text(address);
    describe_address(*made, address);
  }
  return false;
}

}  // namespace

extern "C" {

cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* array, int value, size_t bytes, cudaStream_t) {
  if (!device_array(array, bytes, "cudaMemsetAsync")) return cudaErrorInvalidValue;
  memset(array, value, bytes);
  simt::mark_written(array, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  // From and to the host as well: it shares the addresses.
  for (const void* array : {static_cast<const void*>(target), source})
    if (simt::is_device_address(array) && !device_array(array, bytes, "cudaMemcpyAsync")) return cudaErrorInvalidValue;
  memmove(target, source, bytes);
  simt::mark_written(target, bytes);
  return cudaSuccess;
}

}  // extern "C"
