#pragma once
#include "common/context.h"
#include "pq/selection.h"

namespace longspan::kernels {

/// Each query's table of scores: bytes [B,H,T,M,16 or 256]; q is [B,H,T,D] of kAdc, see selection.h.
void score_tables_cuda(const Selection& selection, const View<4>& q, int64_t B, int64_t H, int64_t T, uint8_t* tables,
                       const CudaContext& context);

}  // namespace longspan::kernels
