#pragma once
#include "common/context.h"

namespace longspan::kernels {

/// to[i][j] = scale * from[i][j], rounded; rows of any stride, columns contiguous.
void cast_cpu(const View<2>& from, double scale, const View<2>& to, const Context& context);

}  // namespace longspan::kernels
