// longspan.kernels.grouped_expand, grouped_reduce and grouped_weight on plain arrays.
#include "kernels/grouped/grouped.h"

#include "host/arguments.h"
#include "host/bind.h"
#include "host/device.h"

namespace longspan::host {
namespace {

using kernels::BlockSide;

/// What all three are given: rows, sets of blocks, and how the weight is stored.
struct Call {
  Array rows;
  Arguments others;
  Array offsets;
  kernels::BlockSets sets;
  kernels::DType dtype;

  Call(const py::handle& x, const char* name, const py::handle& offsets_, int blocks, int active, Stream stream)
      : rows(rows_of(x, name, stream)), others(rows, name, stream), dtype(dtype_of(rows, name)) {
    if (blocks < 1 || blocks > kernels::kMaxBlocks || active < 1 || active > blocks)
      throw py::value_error("blocks is " + std::to_string(blocks) + " and active " + std::to_string(active) +
                            "; 1 to 8 blocks, of which 1 or more are active");
    sets = {blocks, active, nullptr};
    offsets = others.input(offsets_, "offsets", {sets.count() + 1}, "int32");
    check_contiguous(offsets, "offsets");
    sets.offsets = static_cast<const int32_t*>(offsets.data);
  }

  Array weight(const py::handle& given, Stream stream) const {
    Array w = rows_of(given, "weight", stream);
    check_device(w, "weight", rows, "x");
    if (w.dtype != rows.dtype) throw py::value_error("weight is " + w.dtype + " and x " + rows.dtype + "; they must agree");
    return w;
  }
  Array bias(const py::object& given, int64_t columns) const {
    Array b = others.optional_input(given, "bias", {columns}, dtype);
    if (b.data) check_contiguous(b, "bias");
    return b;
  }
};

/// p and q of a tail; q has `columns` rows, or columns unless `by_rows`.
struct Tail {
  Array p, q;
  kernels::GroupedTail tail;
  Tail(const Call& call, const py::object& p_, const py::object& q_, int64_t columns, bool by_rows, Stream stream) {
    if (p_.is_none() != q_.is_none()) throw py::value_error("give both tail_p and tail_q, or none");
    if (p_.is_none()) return;
    const std::string statistics = dtype_name(kernels::statistics_dtype(call.dtype));
    p = rows_of(p_, "tail_p", stream), q = rows_of(q_, "tail_q", stream);
    check_device(p, "tail_p", call.rows, "x"), check_device(q, "tail_q", call.rows, "x");
    const int64_t rank = p.shape[1];
    if (p.dtype != statistics || q.dtype != statistics || p.shape[0] != call.rows.shape[0] ||
        q.shape[by_rows ? 0 : 1] != columns || q.shape[by_rows ? 1 : 0] != rank || rank > 256)
      throw py::value_error("tail_p must be " + statistics + " [n,R] and tail_q " + statistics + " of R (up to 256) and " +
                            std::to_string(columns) + " rows and columns");
    tail = {view_of<2>(p, "tail_p"), view_of<2>(q, "tail_q"), rank};
  }
};

BlockSide side_of(bool by_rows) { return by_rows ? BlockSide::kRows : BlockSide::kColumns; }

py::object grouped_expand(const py::handle& x, const py::handle& weight_, const py::handle& offsets, int blocks, int active,
                          bool by_rows, const py::object& bias_, const py::object& tail_p, const py::object& tail_q,
                          int threads, const py::object& y_, int64_t stream) {
  const Call call(x, "x", offsets, blocks, active, stream);
  const Array weight = call.weight(weight_, stream);
  const int64_t columns = weight.shape[by_rows ? 0 : 1];
  if (weight.shape[by_rows ? 1 : 0] != call.rows.shape[1] || columns % blocks)
    throw py::value_error("weight must be [G*Nb,C] (by_rows) or [C,G*Nb] for x [n,C]");
  const Array bias = call.bias(bias_, columns);
  const Tail tail(call, tail_p, tail_q, columns, by_rows, stream);
  const Output y = call.others.output(y_, "y", {call.rows.shape[0], columns / blocks * active}, call.dtype);
  const kernels::GroupedExpand io{view_of<2>(call.rows, "x"), view_of<2>(weight, "weight"), view_of<2>(y.array, "y"),
                                  bias.data, tail.tail};
  run_on(
      call.rows, threads, stream,
      [&](const auto& context) { kernels::grouped_expand_cpu(call.sets, side_of(by_rows), io, context); },
      [&](const auto& context) {
        LONGSPAN_CUDA_ENTRY(kernels::grouped_expand_cuda(call.sets, side_of(by_rows), io, context));
      });
  return y.object;
}

py::object grouped_reduce(const py::handle& x, const py::handle& weight_, const py::handle& offsets, int blocks, int active,
                          bool by_rows, const py::object& bias_, const py::object& tail_p, const py::object& tail_q,
                          int threads, const py::object& y_, int64_t stream) {
  const Call call(x, "x", offsets, blocks, active, stream);
  const Array weight = call.weight(weight_, stream);
  const int64_t N = weight.shape[by_rows ? 1 : 0];
  if (weight.shape[by_rows ? 0 : 1] * active != call.rows.shape[1] * blocks || call.rows.shape[1] % active)
    throw py::value_error("weight must be [G*Kb,N] (by_rows) or [N,G*Kb] for x [n,active*Kb]");
  const Array bias = call.bias(bias_, N);
  const Tail tail(call, tail_p, tail_q, N, !by_rows, stream);
  const Output y = call.others.output(y_, "y", {call.rows.shape[0], N}, call.dtype);
  const kernels::GroupedReduce io{view_of<2>(call.rows, "x"), view_of<2>(weight, "weight"), view_of<2>(y.array, "y"),
                                  bias.data, tail.tail};
  run_on(
      call.rows, threads, stream,
      [&](const auto& context) { kernels::grouped_reduce_cpu(call.sets, side_of(by_rows), io, context); },
      [&](const auto& context) {
        LONGSPAN_CUDA_ENTRY(kernels::grouped_reduce_cuda(call.sets, side_of(by_rows), io, context));
      });
  return y.object;
}

py::object grouped_weight(const py::handle& a, const py::handle& b_, const py::handle& offsets, int blocks, int active,
                          bool by_rows, bool wide, int threads, const py::object& dweight_, int64_t stream) {
  const Call call(a, "a", offsets, blocks, active, stream);
  const Array b = rows_of(b_, "b", stream);
  check_device(b, "b", call.rows, "a");
  if (b.dtype != call.rows.dtype || b.shape[0] != call.rows.shape[0] || call.rows.shape[1] % active)
    throw py::value_error("a must be [n,active*Nb] and b [n,C] of one dtype");
  const int64_t columns = call.rows.shape[1] / active * blocks, C = b.shape[1];
  const Output dweight = call.others.output(dweight_, "dweight", {by_rows ? columns : C, by_rows ? C : columns},
                                            wide ? kernels::statistics_dtype(call.dtype) : call.dtype);
  const kernels::GroupedWeight io{view_of<2>(call.rows, "a"), view_of<2>(b, "b"), view_of<2>(dweight.array, "dweight")};
  run_on(
      call.rows, threads, stream,
      [&](const auto& context) { kernels::grouped_weight_cpu(call.sets, side_of(by_rows), io, context); },
      [&](const auto& context) {
        LONGSPAN_CUDA_ENTRY(kernels::grouped_weight_cuda(call.sets, side_of(by_rows), io, context));
      });
  return dweight.object;
}

}  // namespace

void bind_grouped(py::module_& m) {
  m.def("grouped_expand", &grouped_expand, py::arg("x"), py::arg("weight"), py::arg("offsets"), py::arg("blocks"),
        py::arg("active"), py::kw_only(), py::arg("by_rows") = true, py::arg("bias") = py::none(),
        py::arg("tail_p") = py::none(), py::arg("tail_q") = py::none(), py::arg("threads") = 0, py::arg("y") = py::none(),
        py::arg("stream") = 1,
        R"(Each slot's columns of y [n,active*Nb] from x [n,C] and the weight block that the row's set has there.

weight [G*Nb,C], or [C,G*Nb] unless by_rows; offsets int32 [sets+1]: rows offsets[s] to offsets[s+1] meet set s, sets of active out of
blocks G in the order of their sorted numbers. tail_p [n,R] and tail_q, of the shape of a weight of R columns, add p q^T. Memory,
streams and y as in attention_fwd.)");
  m.def("grouped_reduce", &grouped_reduce, py::arg("x"), py::arg("weight"), py::arg("offsets"), py::arg("blocks"),
        py::arg("active"), py::kw_only(), py::arg("by_rows") = false, py::arg("bias") = py::none(),
        py::arg("tail_p") = py::none(), py::arg("tail_q") = py::none(), py::arg("threads") = 0, py::arg("y") = py::none(),
        py::arg("stream") = 1,
        R"(One sum y [n,N] over the columns of all slots of x [n,active*Kb].

weight [N,G*Kb], or [G*Kb,N] with by_rows; tail_q [N,R], or [R,N] with by_rows. The rest as in grouped_expand.)");
  m.def("grouped_weight", &grouped_weight, py::arg("a"), py::arg("b"), py::arg("offsets"), py::arg("blocks"),
        py::arg("active"), py::kw_only(), py::arg("by_rows") = true, py::arg("wide") = false, py::arg("threads") = 0,
        py::arg("dweight") = py::none(), py::arg("stream") = 1,
        "The gradient of the weight from a [n,active*Nb] and b [n,C]: [G*Nb,C], or [C,G*Nb] unless by_rows; wide: in "
        "float32.");
}

}  // namespace longspan::host
