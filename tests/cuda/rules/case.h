#pragma once
// Cases of the engine's own tests. A kernel is right as it stands; `simt::mutant(n)` makes it wrong in one way. The line
// that a report must name ends with `// BUG n`.
#include "common/simt.h"
#include "simt/engine/device_memory.h"

namespace rules {

/// `input` and `output` are device memory of the test's own types; n is what the case takes it to be.
using Run = void (*)(simt::Device& device, const void* input, void* output, int64_t n);

struct Case {
  Case(const char* name, Run run);
};

#define RULE_CASE(function) static const ::rules::Case rule_case_##function(#function, function)

}  // namespace rules
