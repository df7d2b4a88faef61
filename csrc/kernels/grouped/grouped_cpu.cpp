// Grouped products on the CPU; see grouped.h.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "common/cast.h"
#include "common/gemm.h"
#include "common/steps.h"
#include "grouped/grouped.h"

namespace longspan::kernels {
namespace {

char* at(const View<2>& x, int64_t row, int64_t column) {
  return static_cast<char*>(x.data) + (row * x.stride[0] + column) * element_size(x.dtype);
}

/// The part of W, or of the tail's q, that is block `block` of `width` rows or columns.
View<2> block_of(const View<2>& w, BlockSide side, int block, int64_t width) {
  View<2> out = w;
  out.data = side == BlockSide::kRows ? at(w, block * width, 0) : at(w, 0, block * width);
  out.size[side == BlockSide::kRows ? 0 : 1] = width;
  return out;
}

GemmTail tail_of(const GroupedTail& tail, const View<2>& q, int64_t row) {
  if (tail.rank == 0) return {};
  return {at(tail.p, row, 0), tail.p.stride[0], q.data, q.stride[0], tail.rank};
}

void* scratch(const Context& context, int64_t count, DType dtype) {
  return context.workspace.get(context.workspace.self, std::max<int64_t>(1, count) * element_size(dtype));
}

void refuse_float16(const char* name, const View<2>& x) {
  if (x.dtype == DType::kFloat16)
    throw std::invalid_argument(std::string(name) + " on the CPU has no float16; use bfloat16 or float32");
}

void check_offsets(const char* name, const BlockSets& sets, int64_t rows) {
  bool fits = sets.offsets[0] == 0 && sets.offsets[sets.count()] == rows;
  for (int s = 0; s < sets.count(); ++s) fits = fits && sets.offsets[s] <= sets.offsets[s + 1];
  if (!fits)
    throw std::invalid_argument(std::string(name) + ": offsets of " + std::to_string(sets.count()) +
                                " sets must grow from 0 to the " + std::to_string(rows) + " rows");
}

/// Runs `f(set, first row, rows)` for the sets that have rows.
template <class F>
void each_set(const BlockSets& sets, F&& f) {
  for (int s = 0; s < sets.count(); ++s)
    if (sets.offsets[s + 1] > sets.offsets[s])
      f(s, int64_t(sets.offsets[s]), int64_t(sets.offsets[s + 1]) - sets.offsets[s]);
}

/// Runs `f(slot, block, first row, rows)` over neighbouring sets that have one block in the slot, slot by slot: their rows
/// share its packed weight.
template <class F>
void each_run(const BlockSets& sets, F&& f) {
  for (int slot = 0; slot < sets.active; ++slot)
    for (int s = 0, end; s < sets.count(); s = end) {
      const int block = sets.block(s, slot);
      for (end = s + 1; end < sets.count() && sets.block(end, slot) == block;) ++end;
      if (sets.offsets[end] > sets.offsets[s])
        f(slot, block, int64_t(sets.offsets[s]), int64_t(sets.offsets[end]) - sets.offsets[s]);
    }
}

}  // namespace

void grouped_expand_cpu(const BlockSets& sets, BlockSide side, const GroupedExpand& io, const Context& context) {
  refuse_float16("grouped_expand", io.x);
  check_offsets("grouped_expand", sets, io.x.size[0]);
  const int64_t width = io.y.size[1] / sets.active, C = io.x.size[1];
  Steps steps(context);
  each_run(sets, [&](int slot, int block, int64_t row, int64_t rows) {
    const View<2> w = block_of(io.weight, side, block, width);
    const View<2> q = io.tail.rank ? block_of(io.tail.q, side, block, width) : View<2>{};
    const char* bias = io.bias ? static_cast<const char*>(io.bias) + block * width * element_size(io.y.dtype) : nullptr;
    const View<2> y{at(io.y, row, slot * width), io.y.dtype, {rows, width}, {io.y.stride[0], 1}};
    if (bias) cast_cpu({const_cast<char*>(bias), y.dtype, {rows, width}, {0, 1}}, 1, y, steps.next());
    gemm_cpu({false, side == BlockSide::kRows, rows, width, C, at(io.x, row, 0), io.x.stride[0], w.data, w.stride[0],
              bias ? 1.0 : 0.0, y.data, y.stride[0], io.x.dtype, w.dtype, y.dtype},
             steps.next(), tail_of(io.tail, q, row));
  });
}

void grouped_reduce_cpu(const BlockSets& sets, BlockSide side, const GroupedReduce& io, const Context& context) {
  constexpr int64_t kPanel = 2048;  // rows whose float sums exist at a time
  refuse_float16("grouped_reduce", io.x);
  check_offsets("grouped_reduce", sets, io.x.size[0]);
  const int64_t width = io.x.size[1] / sets.active, N = io.y.size[1];
  Steps steps(context);
  const auto product = [&](int slot, int block, int64_t row, const View<2>& to) {
    const View<2> w = block_of(io.weight, side, block, width);
    const bool last = slot + 1 == sets.active, adds = slot > 0 || io.bias;
    gemm_cpu({false, side == BlockSide::kColumns, to.size[0], N, width, at(io.x, row, slot * width), io.x.stride[0], w.data,
              w.stride[0], adds ? 1.0 : 0.0, to.data, to.stride[0], io.x.dtype, w.dtype, to.dtype},
             steps.next(), last ? tail_of(io.tail, io.tail.q, row) : GemmTail{});
  };
  const auto start = [&](const View<2>& to) {
    if (io.bias) cast_cpu({const_cast<void*>(io.bias), io.y.dtype, {to.size[0], N}, {0, 1}}, 1, to, steps.next());
  };
  const auto rows_of_y = [&](int64_t row, int64_t rows) {
    return View<2>{at(io.y, row, 0), io.y.dtype, {rows, N}, {io.y.stride[0], 1}};
  };
  if (io.y.dtype != DType::kBFloat16 || sets.active == 1) {
    start(io.y);
    return each_run(
        sets, [&](int slot, int block, int64_t row, int64_t rows) { product(slot, block, row, rows_of_y(row, rows)); });
  }
  // Slots of 16-bit rows are summed in float and rounded once.
  void* panel = scratch(context, std::min(kPanel, io.x.size[0]) * N, DType::kFloat32);
  each_set(sets, [&](int set, int64_t first, int64_t count) {
    for (int64_t row = first; row < first + count; row += kPanel) {
      const int64_t rows = std::min(kPanel, first + count - row);
      const View<2> to{panel, DType::kFloat32, {rows, N}, {N, 1}};
      start(to);
      for (int slot = 0; slot < sets.active; ++slot) product(slot, sets.block(set, slot), row, to);
      cast_cpu(to, 1, rows_of_y(row, rows), steps.next());
    }
  });
}

void grouped_weight_cpu(const BlockSets& sets, BlockSide side, const GroupedWeight& io, const Context& context) {
  refuse_float16("grouped_weight", io.a);
  check_offsets("grouped_weight", sets, io.a.size[0]);
  const int64_t width = io.a.size[1] / sets.active, C = io.b.size[1];
  const DType statistics = statistics_dtype(io.a.dtype);
  View<2> sums = io.dweight;
  if (sums.dtype != statistics) {
    void* memory = scratch(context, sums.size[0] * sums.size[1], statistics);
    sums = {memory, statistics, {sums.size[0], sums.size[1]}, {sums.size[1], 1}};
  }
  for (int64_t i = 0; i < sums.size[0]; ++i) std::fill_n(at(sums, i, 0), sums.size[1] * element_size(statistics), char(0));
  Steps steps(context);
  each_run(sets, [&](int slot, int block, int64_t row, int64_t rows) {
    const View<2> to = block_of(sums, side, block, width);
    const void *a = at(io.a, row, slot * width), *b = at(io.b, row, 0);
    if (side == BlockSide::kRows)
      gemm_cpu({true, false, width, C, rows, a, io.a.stride[0], b, io.b.stride[0], 1.0, to.data, to.stride[0], io.a.dtype,
                io.b.dtype, to.dtype},
               steps.next());
    else
      gemm_cpu({true, false, C, width, rows, b, io.b.stride[0], a, io.a.stride[0], 1.0, to.data, to.stride[0], io.b.dtype,
                io.a.dtype, to.dtype},
               steps.next());
  });
  if (sums.data != io.dweight.data) cast_cpu(sums, 1, io.dweight, steps.next());
}

}  // namespace longspan::kernels
