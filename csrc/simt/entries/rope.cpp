// rope(x [B,T,H,stride], D, cos, sin, positions, ...) -> y, or x when in_place
#include "rope/rope.h"

#include "common/simt.h"
#include "simt/entries/dtype.h"
#include "simt/entry.h"

namespace simt {
namespace {

using namespace longspan::kernels;

py::dict rope(Device& device, const py::dict& arguments) {
  const DType dtype = dtype_named(value<std::string>(arguments, "dtype"));
  const Shape s = shape(arguments, "x"), table = shape(arguments, "cos"), rows = shape(arguments, "positions");
  const int64_t D = value<int64_t>(arguments, "D");
  const auto view = [&](void* data) {
    return View<4>{data, dtype, {s.at(0), s.at(2), s.at(1), D}, {s[1] * s[2] * s.at(3), s[3], s[2] * s[3], 1}};
  };
  void* x = input_bytes(device, arguments, "x", size_t(element_size(dtype)));
  const bool in_place = value_or(arguments, "in_place", false);
  if (in_place) also_output(x, "y", s, numpy_name(dtype));
  void* y = in_place ? x : output_bytes(device, "y", s, numpy_name(dtype));
  const auto angles = [&](const char* name) {
    return View<2>{input<float>(device, arguments, name), DType::kFloat32, {table.at(0), table.at(1)}, {table.at(1), 1}};
  };
  rope_cuda({value_or(arguments, "interleaved", false), value_or(arguments, "inverse", false)},
            {view(x), view(y), angles("cos"), angles("sin"), input<int64_t>(device, arguments, "positions"),
             rows.at(0) == 1 ? 0 : s.at(1)},
            {});
  return {};
}
SIMT_ENTRY(rope);

}  // namespace
}  // namespace simt
