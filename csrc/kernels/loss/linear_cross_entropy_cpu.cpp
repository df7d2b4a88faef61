// Segmented linear cross-entropy on the CPU; see loss.h for the contract.
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "loss/loss.h"
#include "loss/segment.h"

namespace longspan::kernels {
namespace {

template <class T>
T* scratch(const Context& context, int64_t count) {
  return static_cast<T*>(context.workspace.get(context.workspace.self, count * int64_t(sizeof(T))));
}

void run_segment(const LossSegment& segment, const Context& context) {
  LONGSPAN_CALL_PER_ISA(context.isa, cross_entropy_segment, segment, context);
}

void sum_columns(DType dtype, const void* x, int64_t rows, int64_t V, int64_t stride, double* sums, const Context& context) {
  LONGSPAN_CALL_PER_ISA(context.isa, add_column_sums, dtype, x, rows, V, stride, sums, context);
}

void round_into(DType from_dtype, const void* from, int64_t rows, int64_t columns, const View<2>& to,
                const Context& context) {
  LONGSPAN_CALL_PER_ISA(context.isa, store_rounded, from_dtype, from, rows, columns, to.dtype, to.data, to.stride[0],
                        context);
}

char* row_at(const View<2>& x, int64_t row) {
  return static_cast<char*>(x.data) + row * x.stride[0] * element_size(x.dtype);
}

bool weight_is_zero(const LinearCrossEntropyTensors& io, int64_t t) {
  if (!io.row_weights) return false;
  if (io.hidden.dtype == DType::kFloat64) return static_cast<const double*>(io.row_weights)[t] == 0;
  return static_cast<const float*>(io.row_weights)[t] == 0;
}

/// Writes the rows that count to `index` and returns how many there are.
int64_t rows_that_count(const LinearCrossEntropySpec& spec, const LinearCrossEntropyTensors& io, int64_t* index) {
  const int64_t T = io.hidden.size[0], V = io.weight.size[0];
  int64_t count = 0;
  for (int64_t t = 0; t < T; ++t) {
    const int64_t label = io.labels[t];
    if (label == spec.ignore_index) continue;
    if (label < 0 || label >= V)
      throw std::invalid_argument("linear_cross_entropy: label " + std::to_string(label) + " at row " + std::to_string(t) +
                                  " is out of range; allowed: 0 to " + std::to_string(V - 1) + " (V is " +
                                  std::to_string(V) + "), or ignore_index " + std::to_string(spec.ignore_index));
    if (!weight_is_zero(io, t)) index[count++] = t;
  }
  return count;
}

void clear_rows(const View<2>& x, const Context& context) {
  constexpr int64_t kRows = 64;
  parallel_for(context, ceil_div(x.size[0], kRows), [&](int64_t task, int) {
    for (int64_t i = task * kRows; i < std::min(x.size[0], (task + 1) * kRows); ++i)
      std::memset(row_at(x, i), 0, size_t(x.size[1] * element_size(x.dtype)));
  });
}

/// The rows `index[0..rows)` of a view, as one matrix: the view itself where they follow each other.
struct RowBlock {
  View<2> view;
  const int64_t* index;
  int64_t rows;
  void* gathered;  // [rows, C], or null when the rows are used in place

  RowBlock(const View<2>& x, const int64_t* rows_index, int64_t count, void* buffer)
      : view(x), index(rows_index), rows(count), gathered(index[count - 1] - index[0] == count - 1 ? nullptr : buffer) {}

  void* data() const { return gathered ? gathered : row_at(view, index[0]); }
  int64_t stride() const { return gathered ? view.size[1] : view.stride[0]; }

  template <class F>
  void each_row(const Context& context, F&& body) const {
    if (!gathered) return;
    const size_t bytes = size_t(view.size[1] * element_size(view.dtype));
    constexpr int64_t kRows = 64;
    parallel_for(context, ceil_div(rows, kRows), [&](int64_t task, int) {
      for (int64_t i = task * kRows; i < std::min(rows, (task + 1) * kRows); ++i)
        body(row_at(view, index[i]), static_cast<char*>(gathered) + i * int64_t(bytes), bytes);
    });
  }
  void gather(const Context& context) const {
    each_row(context, [](const char* row, char* packed, size_t bytes) { std::memcpy(packed, row, bytes); });
  }
  void scatter(const Context& context) const {
    each_row(context, [](char* row, const char* packed, size_t bytes) { std::memcpy(row, packed, bytes); });
  }
};

/// The sum of dlogits^T hidden over segments: the output itself, or floats when bfloat16 must be summed over segments.
struct WeightGradient {
  View<2> out;
  void* sums;
  DType dtype;
  int64_t stride;

  WeightGradient(const View<2>& dweight, bool one_segment, const Context& context)
      : out(dweight), sums(dweight.data), dtype(dweight.dtype), stride(dweight.stride[0]) {
    if (!sums || dtype != DType::kBFloat16 || one_segment) return;
    sums = scratch<float>(context, out.size[0] * out.size[1]);
    dtype = DType::kFloat32;
    stride = out.size[1];
  }
  void finish(const Context& context) const {
    if (sums != out.data) round_into(dtype, sums, out.size[0], out.size[1], out, context);
  }
};

void write_losses(const LinearCrossEntropyTensors& io, const double* losses) {
  const int64_t T = io.hidden.size[0];
  double total = 0;
  for (int64_t t = 0; t < T; ++t) total += losses[t];
  const auto write = [&](auto* rows, auto* sum) {
    using Out = std::remove_pointer_t<decltype(rows)>;
    if (rows) std::copy(losses, losses + T, rows);
    if (sum) *sum = Out(total);
  };
  if (io.hidden.dtype == DType::kFloat64)
    write(static_cast<double*>(io.losses), static_cast<double*>(io.total));
  else
    write(static_cast<float*>(io.losses), static_cast<float*>(io.total));
}

}  // namespace

void linear_cross_entropy_cpu(const LinearCrossEntropySpec& spec, const LinearCrossEntropyTensors& io,
                              const Context& context) {
  const int64_t T = io.hidden.size[0], C = io.hidden.size[1], V = io.weight.size[0];
  const DType dtype = io.hidden.dtype, statistics = statistics_dtype(dtype);
  if (dtype == DType::kFloat16) throw std::invalid_argument("the loss on the CPU has no float16; use bfloat16 or float32");
  auto* index = scratch<int64_t>(context, T);
  auto* losses = scratch<double>(context, T);
  const int64_t count = rows_that_count(spec, io, index);

  std::fill(losses, losses + T, 0.0);
  if (io.dhidden.data && count < T) clear_rows(io.dhidden, context);
  if (io.dweight.data && count == 0) clear_rows(io.dweight, context);
  double* dbias = io.dbias ? scratch<double>(context, V) : nullptr;
  if (dbias) std::fill(dbias, dbias + V, 0.0);

  if (count > 0) {
    const int64_t segments = ceil_div(count, spec.segment);
    const int64_t longest =
        ceil_div(count, segments);                // equal segments: no short last one that reads all of W for a few rows
    const int64_t stride = round_up(V, 16) + 16;  // off a power of two, so that rows do not share cache sets
    const bool gradient = io.dhidden.data || io.dweight.data || io.dbias;
    const WeightGradient dweight(io.dweight, segments == 1, context);
    void* logits = scratch<char>(context, longest * stride * element_size(statistics));
    const bool gathers = index[count - 1] - index[0] != count - 1;
    void* rows_buffer = gathers ? scratch<char>(context, longest * C * element_size(dtype)) : nullptr;
    void* dhidden_buffer = gathers && io.dhidden.data ? scratch<char>(context, longest * C * element_size(dtype)) : nullptr;
    const auto multiply = [&](const GemmArgs& args) { context.gemm.run(context.gemm.self, args); };

    for (int64_t first = 0; first < count; first += longest) {
      const int64_t rows = std::min(longest, count - first);
      const RowBlock hidden(io.hidden, index + first, rows, rows_buffer);
      hidden.gather(context);
      multiply({false, true, rows, V, C, hidden.data(), hidden.stride(), io.weight.data, io.weight.stride[0], 0, logits,
                stride, dtype, io.weight.dtype, statistics});
      run_segment({dtype, logits, rows, V, stride, index + first, io.labels, io.row_weights, io.bias, spec.logit_scale,
                   spec.logit_softcap, gradient, losses},
                  context);
      if (io.dhidden.data) {
        const RowBlock dhidden(io.dhidden, index + first, rows, dhidden_buffer);
        multiply({false, false, rows, C, V, logits, stride, io.weight.data, io.weight.stride[0], 0, dhidden.data(),
                  dhidden.stride(), statistics, io.weight.dtype, dtype});
        dhidden.scatter(context);
      }
      if (dweight.sums)
        multiply({true, false, V, C, rows, logits, stride, hidden.data(), hidden.stride(), first > 0 ? 1.0 : 0.0,
                  dweight.sums, dweight.stride, statistics, dtype, dweight.dtype});
      if (dbias) sum_columns(statistics, logits, rows, V, stride, dbias, context);
    }
    if (dweight.sums) dweight.finish(context);
  }
  if (dbias) round_into(DType::kFloat64, dbias, 1, V, {io.dbias, dtype, {1, V}, {V, 1}}, context);
  write_losses(io, losses);
}

}  // namespace longspan::kernels
