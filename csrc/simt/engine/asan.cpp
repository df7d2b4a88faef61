#include "simt/engine/asan.h"

#include <cstdint>

#include "simt/engine/memory.h"
#include "simt/engine/report.h"

// From sanitizer/asan_interface.h and common_interface_defs.h, weak.
extern "C" {
#define SIMT_WEAK __attribute__((weak))
SIMT_WEAK void __asan_poison_memory_region(void const volatile*, size_t);
SIMT_WEAK void __asan_unpoison_memory_region(void const volatile*, size_t);
SIMT_WEAK void __sanitizer_start_switch_fiber(void**, const void*, size_t);
SIMT_WEAK void __sanitizer_finish_switch_fiber(void*, const void**, size_t*);
SIMT_WEAK void __asan_set_error_report_callback(void (*)(const char*));
SIMT_WEAK void* __asan_get_report_pc();
SIMT_WEAK void* __asan_get_report_address();
SIMT_WEAK int __asan_get_report_access_type();
SIMT_WEAK size_t __asan_get_report_access_size();
SIMT_WEAK const char* __asan_get_report_description();
#undef SIMT_WEAK
}

namespace simt::asan {
namespace {

const void* last_address;
// A loop that runs over an array must not print a page for each element.
constexpr int kMaxErrors = 100;
int errors;

void on_error(const char*) {
  void* address = __asan_get_report_address();
  last_address = address;
  if (++errors > kMaxErrors)
    if (const Region* region = find(address); region && !region->stale) unpoison_red_zones(*region);
  Report* made = report(rule::kAsan, Site{nullptr, 0, __asan_get_report_pc()});
  if (!made) return;
  const char* verb = __asan_get_report_access_type() ? "write" : "read";
  made->message = std::string(__asan_get_report_description()) + ": " + verb + " of " +
                  std::to_string(__asan_get_report_access_size()) + " bytes";
  describe_address(*made, address);
}

}  // namespace

bool active() { return __asan_poison_memory_region != nullptr; }
void poison(const void* address, size_t bytes) {
  if (active()) __asan_poison_memory_region(address, bytes);
}
void unpoison(const void* address, size_t bytes) {
  if (active()) __asan_unpoison_memory_region(address, bytes);
}
void start_switch(void** save, const void* bottom, size_t bytes) {
  if (active()) __sanitizer_start_switch_fiber(save, bottom, bytes);
}
void finish_switch(void* saved, const void** old_bottom, size_t* old_bytes) {
  if (active()) __sanitizer_finish_switch_fiber(saved, old_bottom, old_bytes);
}
void install() {
  errors = 0;
  if (active()) __asan_set_error_report_callback(on_error);
}
bool reported(const void* address) { return active() && last_address == address; }

}  // namespace simt::asan
