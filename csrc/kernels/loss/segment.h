#pragma once
// The steps of linear_cross_entropy_cpu that are compiled once per instruction set.
#include "common/context.h"
#include "common/per_isa.h"

namespace longspan::kernels {

/// One segment: raw products of `rows` gathered rows, [rows, V] with row stride `stride`, in statistics type.
struct LossSegment {
  DType dtype;  // of hidden, weight and bias
  void* logits;
  int64_t rows, V, stride;
  const int64_t* index;     // gathered row -> token
  const int64_t* labels;    // by token
  const void* row_weights;  // by token, statistics, or null
  const void* bias;
  double scale, softcap;
  bool gradient;   // turn the products into their gradient
  double* losses;  // by token
};

LONGSPAN_DECLARE_PER_ISA(void cross_entropy_segment(const LossSegment& segment, const Context& context))

/// sums[v] += sum over rows of x[row, v], x [rows, V] in statistics type `dtype`.
LONGSPAN_DECLARE_PER_ISA(void add_column_sums(DType dtype, const void* x, int64_t rows, int64_t V, int64_t stride,
                                              double* sums, const Context& context))

/// Copies [rows, columns] from float or double to `dtype_to`, rounding to nearest even.
LONGSPAN_DECLARE_PER_ISA(void store_rounded(DType dtype_from, const void* from, int64_t rows, int64_t columns,
                                            DType dtype_to, void* to, int64_t stride, const Context& context))

}  // namespace longspan::kernels
