// glu_fwd(gate [T,stride], up, activation, F, dtype) -> y
// glu_bwd(dy, gate, up, activation, F, dtype, in_place) -> dgate, dup
#include "glu/glu.h"

#include "common/simt.h"
#include "simt/entries/dtype.h"
#include "simt/entry.h"

namespace simt {
namespace {

using namespace longspan::kernels;

struct GluRows {
  Device& device;
  const py::dict& arguments;
  DType dtype = dtype_named(value<std::string>(arguments, "dtype"));
  Activation activation = activation_named(value<std::string>(arguments, "activation"));
  int64_t F = value<int64_t>(arguments, "F");

  View<2> view(void* data, const Shape& shape) const { return {data, dtype, {shape.at(0), F}, {shape.at(1), 1}}; }
  View<2> in(const char* name) const {
    if (!given(arguments, name)) return {};
    return view(input_bytes(device, arguments, name, size_t(element_size(dtype))), shape(arguments, name));
  }
  /// A new array like `like`, or the input `over` itself.
  View<2> out(const char* name, const char* like, const View<2>* over = nullptr) const {
    const Shape s = shape(arguments, like);
    if (!over) return view(output_bytes(device, name, s, numpy_name(dtype)), s);
    also_output(over->data, name, s, numpy_name(dtype));
    return *over;
  }
};

py::dict glu_fwd(Device& device, const py::dict& arguments) {
  const GluRows rows{device, arguments};
  const View<2> gate = rows.in("gate"), up = rows.in("up");
  glu_fwd_cuda({rows.activation, gate, up, rows.out("y", "gate")}, {});
  return {};
}
SIMT_ENTRY(glu_fwd);

py::dict glu_bwd(Device& device, const py::dict& arguments) {
  const GluRows rows{device, arguments};
  const bool in_place = value_or(arguments, "in_place", false);
  const View<2> dy = rows.in("dy"), gate = rows.in("gate"), up = rows.in("up");
  const View<2> dgate = rows.out("dgate", "gate", in_place ? &gate : nullptr);
  const View<2> dup = up.data ? rows.out("dup", "up", in_place ? &up : nullptr) : View<2>{};
  glu_bwd_cuda({rows.activation, dy, gate, up, dgate, dup}, {});
  return {};
}
SIMT_ENTRY(glu_bwd);

}  // namespace
}  // namespace simt
