#include "simt/engine/device_memory.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "simt/engine/build.h"
#include "simt/engine/machine.h"
#include "simt/engine/recording.h"
#include "simt/engine/shadow.h"

namespace simt {
namespace {

// Vector loads and cp.async need it; cudaMalloc gives more, but views of tensors do not.
constexpr size_t kAlignment = 16;

std::vector<Region*>& live_arrays() {
  static std::vector<Region*> arrays;
  return arrays;
}

Region* array_at(const void* address) {
  Region* region = find(address);
  if (!region || region->base != address || region->stale) throw std::invalid_argument("not the start of a device array");
  return region;
}

}  // namespace

void check_global_red_zones() {
  for (Region* array : live_arrays()) check_red_zones(array);
}

Device::~Device() {
  while (!arrays_.empty()) release(arrays_.back()->base);
}

Region* Device::add(const std::string& name, size_t bytes, bool poison) {
  const Flush flush = machine.seed % 2 ? Flush::kLow : Flush::kHigh;
  Region* region = allocate(Space::kGlobal, name, bytes, kAlignment, flush, poison);
  arrays_.push_back(region);
  if (poison) live_arrays().push_back(region);
  if (recording.active) recording.arrays.push_back({name, region->base, bytes, {}});
  return region;
}

void* Device::upload(const std::string& name, const void* data, size_t bytes) {
  Region* region = add(name, bytes, true);
  memcpy(region->base, data, bytes);
  mark_written(region->base, bytes);
  if (recording.active) recording.arrays.back().contents.assign(region->base, bytes);
  return region->base;
}

void* Device::output(const std::string& name, size_t bytes) { return add(name, bytes, true)->base; }

void* Device::reserve(const std::string& name, size_t bytes) {
  Region* region = add(name, bytes, false);
  region->tracks_init = false;
  return region->base;
}

void Device::release(void* array) {
  Region* region = array_at(array);
  std::erase(arrays_, region);
  std::erase(live_arrays(), region);
  simt::release(region);
}

void Device::download(const void* array, void* host, size_t bytes) const {
  if (!find_array(array, bytes)) throw std::out_of_range("download of more bytes than the array has");
  memcpy(host, array, bytes);
}

size_t Device::unwritten(const void* array, size_t element_bytes) const {
  const Region* region = array_at(array);
  if (kBuild == Build::kHooks) return count_unwritten(*region);
  size_t count = 0;
  for (size_t at = 0; at + element_bytes <= region->bytes; at += element_bytes) {
    const char* element = region->base + at;
    const bool poison =
        std::all_of(element, element + element_bytes, [](char c) { return static_cast<unsigned char>(c) == kPoison; });
    count += poison ? element_bytes : 0;
  }
  return count;
}

}  // namespace simt
