#pragma once
// Device memory as entries see it.
#include <cstddef>
#include <string>
#include <vector>

#include "simt/engine/memory.h"

namespace simt {

/// The arrays of one run. All are released with it, and pointers that survive are reported when a kernel uses them.
class Device {
 public:
  Device() = default;
  ~Device();
  Device(const Device&) = delete;

  /// A copy of `bytes` bytes of host memory.
  void* upload(const std::string& name, const void* data, size_t bytes);
  /// Memory that a kernel is to write: poisoned and uninitialised.
  void* output(const std::string& name, size_t bytes);
  void* scratch(const std::string& name, size_t bytes) { return output(name, bytes); }
  /// Addresses without contents, for offsets beyond 2^31: zero bytes that take memory where they are touched.
  void* reserve(const std::string& name, size_t bytes);
  void release(void* array);

  void download(const void* array, void* host, size_t bytes) const;
  /// Bytes of the array that no one has written; known to the hooks build, otherwise those that hold poison.
  size_t unwritten(const void* array, size_t element_bytes) const;

 private:
  Region* add(const std::string& name, size_t bytes, bool poison);
  std::vector<Region*> arrays_;
};

}  // namespace simt
