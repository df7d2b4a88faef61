#pragma once
// Checks of the accesses that the engine makes on behalf of a thread: cp.async, ldmatrix, atomics. All builds check
// bounds and alignment; the hooks build also races and initialisation.
#include <cstddef>

#include "simt/engine/shadow.h"
#include "simt/engine/site.h"

namespace simt {

/// Each returns false when the access must not be made, with a report that calls the address `what`.
bool check_aligned(const void* address, size_t alignment, const char* what, const Site& site);
bool check_shared(const void* address, size_t bytes, Access access, const char* what, const Site& site);
bool check_global(const void* address, size_t bytes, Access access, const char* what, const Site& site);

}  // namespace simt
