// grouped_expand, grouped_reduce(x [n,ldx], columns, weight [rows,ldw], weight_columns, bias, tail_p, tail_q, offsets,
// blocks, active, by_rows, outputs) -> y grouped_weight(a, columns, b, b_columns, offsets, ...) -> dweight
#include "grouped/grouped.h"

#include "simt/entries/dtype.h"
#include "simt/entry.h"

namespace simt {
namespace {

using namespace longspan::kernels;

/// One call's arrays: matrices whose rows may be longer than what counts of them.
struct GroupedCall {
  Device& device;
  const py::dict& arguments;
  DType dtype = dtype_named(value<std::string>(arguments, "dtype"));

  View<2> in(const char* name, const char* columns) const {
    const Shape s = shape(arguments, name);
    return {input_bytes(device, arguments, name, size_t(element_size(dtype))),
            dtype,
            {s.at(0), value<int64_t>(arguments, columns)},
            {s.at(1), 1}};
  }
  View<2> floats(const char* name) const {
    const Shape s = shape(arguments, name);
    return {input<float>(device, arguments, name), DType::kFloat32, {s.at(0), s.at(1)}, {s.at(1), 1}};
  }
  View<2> out(const char* name, int64_t rows, int64_t columns, DType of) const {
    return {output_bytes(device, name, {rows, columns}, numpy_name(of)), of, {rows, columns}, {columns, 1}};
  }
  const void* bias() const {
    return given(arguments, "bias") ? input_bytes(device, arguments, "bias", size_t(element_size(dtype))) : nullptr;
  }
  GroupedTail tail() const {
    if (!given(arguments, "tail_p")) return {};
    const View<2> p = floats("tail_p");
    return {p, floats("tail_q"), p.size[1]};
  }
  BlockSets sets() const {
    return {value<int>(arguments, "blocks"), value<int>(arguments, "active"), input<int32_t>(device, arguments, "offsets")};
  }
  BlockSide side() const { return value_or(arguments, "by_rows", true) ? BlockSide::kRows : BlockSide::kColumns; }
  int64_t outputs() const { return value<int64_t>(arguments, "outputs"); }
  CudaContext context() const {
    return {
        nullptr,
        {&device, [](void* self, int64_t bytes) { return static_cast<Device*>(self)->scratch("scratch", size_t(bytes)); }},
        {}};
  }
};

py::dict grouped_expand(Device& device, const py::dict& arguments) {
  const GroupedCall call{device, arguments};
  const View<2> x = call.in("x", "columns");
  grouped_expand_cuda(call.sets(), call.side(),
                      {x, call.in("weight", "weight_columns"), call.out("y", x.size[0], call.outputs(), call.dtype),
                       call.bias(), call.tail()},
                      call.context());
  return {};
}
SIMT_ENTRY(grouped_expand);

py::dict grouped_reduce(Device& device, const py::dict& arguments) {
  const GroupedCall call{device, arguments};
  const View<2> x = call.in("x", "columns");
  grouped_reduce_cuda(call.sets(), call.side(),
                      {x, call.in("weight", "weight_columns"), call.out("y", x.size[0], call.outputs(), call.dtype),
                       call.bias(), call.tail()},
                      call.context());
  return {};
}
SIMT_ENTRY(grouped_reduce);

py::dict grouped_weight(Device& device, const py::dict& arguments) {
  const GroupedCall call{device, arguments};
  const View<2> a = call.in("a", "columns"), b = call.in("b", "b_columns");
  const BlockSets sets = call.sets();
  const int64_t total = a.size[1] / sets.active * sets.blocks, C = b.size[1];
  const bool by_rows = call.side() == BlockSide::kRows;
  const DType of = value_or(arguments, "wide", false) ? DType::kFloat32 : call.dtype;
  grouped_weight_cuda(sets, call.side(), {a, b, call.out("dweight", by_rows ? total : C, by_rows ? C : total, of)},
                      call.context());
  return {};
}
SIMT_ENTRY(grouped_weight);

}  // namespace
}  // namespace simt
