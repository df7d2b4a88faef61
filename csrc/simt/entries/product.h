#pragma once
#include "common/context.h"

namespace simt {

/// The matrix library of a run: on the host, sums in double, rounded once; recorded in order with the launches.
longspan::kernels::Gemm host_product();

}  // namespace simt
