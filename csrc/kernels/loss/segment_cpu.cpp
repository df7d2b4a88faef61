// Steps on one segment of logits; see segment.h.
#include "loss/segment.h"
#include "loss/softmax_row.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {
namespace {

template <class S>
void run_segment(const LossSegment& s, const Context& context) {
  using T = Compute<S>;
  const RowLogits<T, S> logits{static_cast<const S*>(s.bias), T(s.scale), T(s.softcap)};
  // One row is one task: a row of logits fits the L2 cache, so its three passes read memory once.
  parallel_for(context, s.rows, [&](int64_t i, int) {
    const int64_t t = s.index[i];
    const T weight = s.row_weights ? static_cast<const T*>(s.row_weights)[t] : T(1);
    T* row = static_cast<T*>(s.logits) + i * s.stride;
    s.losses[t] = cross_entropy_row<T, S>(logits, row, s.V, s.labels[t], weight, s.gradient);
  });
}

template <class T>
void column_sums(const T* x, int64_t rows, int64_t V, int64_t stride, double* sums, const Context& context) {
  constexpr int64_t kColumns = 512;
  parallel_for(context, ceil_div(V, kColumns), [&](int64_t task, int) {
    const int64_t first = task * kColumns, last = V - first < kColumns ? V : first + kColumns;
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t v = first; v < last; ++v) sums[v] += double(x[i * stride + v]);
  });
}

template <class T, class S>
void round_to(const T* from, int64_t rows, int64_t columns, S* to, int64_t stride, const Context& context) {
  constexpr int64_t kRows = 64;
  parallel_for(context, ceil_div(rows, kRows), [&](int64_t task, int) {
    for (int64_t i = task * kRows; i < rows && i < (task + 1) * kRows; ++i)
      for (int64_t c = 0; c < columns; ++c) store_as<Compute<S>>(to + i * stride + c, Compute<S>(from[i * columns + c]));
  });
}

}  // namespace

void cross_entropy_segment(const LossSegment& segment, const Context& context) {
  switch (segment.dtype) {
    case DType::kFloat32: return run_segment<float>(segment, context);
    case DType::kFloat64: return run_segment<double>(segment, context);
    case DType::kBFloat16: return run_segment<bfloat16>(segment, context);
    case DType::kFloat16: return;  // linear_cross_entropy_cpu refuses it
  }
}

void add_column_sums(DType dtype, const void* x, int64_t rows, int64_t V, int64_t stride, double* sums,
                     const Context& context) {
  if (dtype == DType::kFloat64) return column_sums(static_cast<const double*>(x), rows, V, stride, sums, context);
  column_sums(static_cast<const float*>(x), rows, V, stride, sums, context);
}

void store_rounded(DType dtype_from, const void* from, int64_t rows, int64_t columns, DType dtype_to, void* to,
                   int64_t stride, const Context& context) {
  const auto with = [&](auto* source) {
    switch (dtype_to) {
      case DType::kFloat32: return round_to(source, rows, columns, static_cast<float*>(to), stride, context);
      case DType::kFloat64: return round_to(source, rows, columns, static_cast<double*>(to), stride, context);
      case DType::kBFloat16: return round_to(source, rows, columns, static_cast<bfloat16*>(to), stride, context);
      case DType::kFloat16: return;  // linear_cross_entropy_cpu refuses it
    }
  };
  if (dtype_from == DType::kFloat64)
    with(static_cast<const double*>(from));
  else
    with(static_cast<const float*>(from));
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
