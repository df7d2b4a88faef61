#pragma once
// What one lane brings to the tensor-core instructions.
#include <cstdint>
#include <source_location>

#include "simt/device/ptx.h"

namespace simt {

struct MmaLane {
  float* d;
  const uint32_t *a, *b;
  MmaType type;
};
struct LdmatrixLane {
  uint32_t* registers;
  const void* row;
  bool transposed;
};

/// `lanes[i]` is the payload of lane i, null when the lane takes no part.
void run_mma(void* const* lanes);
void run_ldmatrix(void* const* lanes, const std::source_location& caller);

}  // namespace simt
