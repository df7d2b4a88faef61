#include "simt/engine/touch.h"

#include "simt/device/atomic.h"
#include "simt/engine/build.h"
#include "simt/engine/machine.h"
#include "simt/engine/report.h"

namespace simt {
namespace {

void complain(const char* broken, const std::string& message, const void* address, const Site& site) {
  if (Report* made = report(broken, site)) {
    made->message = message;
    describe_address(*made, address);
  }
}

bool check_space(const void* address, size_t bytes, Access access, bool shared, const char* what, const Site& site) {
  const Region* region = find(address);
  if (region && region->stale) {
    complain(rule::kStalePointer, std::string(what) + " is " + address_text(address), address, site);
    return false;
  }
  if (!region || !region->holds(address, bytes) || region->shared() != shared) {
    const char* space = shared ? "a shared array" : "a global array";
    complain(rule::kOutOfBounds,
             std::string(what) + " of " + std::to_string(bytes) + " bytes is not in " + space + ": " + address_text(address),
             address, site);
    return false;
  }
  return kBuild != Build::kHooks || check_access(address, bytes, access, encode(site));
}

}  // namespace

bool check_aligned(const void* address, size_t alignment, const char* what, const Site& site) {
  if (uintptr_t(address) % alignment == 0) return true;
  complain(rule::kMisaligned,
           std::string(what) + " " + address_text(address) + " is not aligned to " + std::to_string(alignment) + " bytes",
           address, site);
  return false;
}

bool check_shared(const void* address, size_t bytes, Access access, const char* what, const Site& site) {
  return check_space(address, bytes, access, true, what, site);
}

bool check_global(const void* address, size_t bytes, Access access, const char* what, const Site& site) {
  return check_space(address, bytes, access, false, what, site);
}

bool atomic_access(const void* address, size_t bytes, const Caller& caller) {
  const Site site = Site::at(caller);
  const Region* region = find(address);
  const bool shared = region && region->shared();
  return check_aligned(address, bytes, "atomic operand", site) &&
         check_space(address, bytes, Access::kAtomic, shared, "atomic operand", site);
}

}  // namespace simt
