// Shared memory: poisoned for every block, red zones checked after it.
#include "simt/device/shared.h"

#include <algorithm>

#include "simt/engine/machine.h"
#include "simt/engine/report.h"

namespace simt {
namespace {

/// Static arrays that the running launch has used.
std::vector<Region*>& arrays_in_use() {
  static std::vector<Region*> arrays;
  return arrays;
}

size_t static_bytes() {
  size_t bytes = 0;
  for (const Region* array : arrays_in_use()) bytes += array->bytes;
  return bytes;
}

}  // namespace

void begin_launch_shared(size_t dynamic_bytes) {
  const Flush flush = machine.seed % 2 ? Flush::kLow : Flush::kHigh;
  constexpr size_t kAlignment = 1024;
  if (!machine.dynamic)
    machine.dynamic = allocate(Space::kDynamicShared, "dynamic shared memory", kMaxDynamicShared, kAlignment, flush, true);
  // The red zones around a smaller array must be whole.
  place(machine.dynamic, kMaxDynamicShared, kAlignment, flush);
  fill_poison(machine.dynamic);
  place(machine.dynamic, dynamic_bytes, kAlignment, flush);
  arrays_in_use().clear();
}

void begin_block_shared() {
  fill_poison(machine.dynamic);
  for (Region* array : arrays_in_use()) fill_poison(array);
}

void end_block_shared() {
  check_red_zones(machine.dynamic);
  for (Region* array : arrays_in_use()) check_red_zones(array);
}

void* dynamic_shared() { return machine.dynamic->base; }

void* static_shared(StaticShared& array) {
  auto* region = static_cast<Region*>(array.region);
  if (!region) {
    region = allocate(Space::kStaticShared, array.name, array.bytes, array.alignment, Flush::kHigh, true);
    array.region = region;
  }
  region->epoch = machine.epochs.launch_begin;
  std::vector<Region*>& arrays = arrays_in_use();
  if (std::find(arrays.begin(), arrays.end(), region) == arrays.end()) {
    fill_poison(region);  // the first block of this launch meets it after its begin
    arrays.push_back(region);
    if (static_bytes() > kMaxStaticShared || static_bytes() + machine.dynamic->bytes > kMaxDynamicShared)
      if (Report* made = report(rule::kLaunch, machine.launch.site))
        made->message = std::to_string(static_bytes()) + " bytes of static and " + std::to_string(machine.dynamic->bytes) +
                        " of dynamic shared memory: a block has at most " + std::to_string(kMaxStaticShared) +
                        " static and " + std::to_string(kMaxDynamicShared) + " together";
  }
  return region->base;
}

}  // namespace simt
