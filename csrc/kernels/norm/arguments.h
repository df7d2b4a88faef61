#pragma once
// What the CUDA kernels of the norms are given.
#include "norm/norm.h"

namespace longspan::kernels {

/// Rows of S with a stride in elements; weight and bias of W.
template <class S, class W>
struct NormRows {
  const S *x, *residual;
  S *sum, *y;
  int64_t x_stride, residual_stride, sum_stride, y_stride;
  const W *weight, *bias;
  float *rstd, *mean;
  int C;
  float eps, weight_offset;
  bool aligned;
};

template <class S, class W>
struct NormGradientRows {
  const S *dy, *dsum, *x;
  S* dx;
  int64_t dy_stride, dsum_stride, x_stride, dx_stride;
  const W* weight;
  const float *rstd, *mean;
  float *dweight_parts, *dbias_parts;  // [chunks, C], null where not wanted
  int64_t rows, chunk_rows;
  int C;
  float weight_offset;
  bool aligned;
};

}  // namespace longspan::kernels
