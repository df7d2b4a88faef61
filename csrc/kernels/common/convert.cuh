#pragma once
// Between the types that arrays hold and float, in which kernels compute.
#include "common/simt.h"

namespace longspan::kernels {

SIMT_DEVICE float to_float(float x) { return x; }
SIMT_DEVICE float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
SIMT_DEVICE float to_float(__half x) { return __half2float(x); }

/// Stores one element, rounded to nearest even.
SIMT_DEVICE void store(float* to, float x) { *to = x; }
template <class S>
SIMT_DEVICE void store(S* to, float x) {
  *to = simt::rounded(x, S());
}

}  // namespace longspan::kernels
