// norm_fwd(x [T,C], dtype, ...) -> y, sum, rstd, mean
// norm_bwd(dy, x, rstd, mean, dtype, ...) -> dx, dweight, dbias
// Rows may be strided: arrays are [T, stride] and C says how much of a row counts.
#include "norm/norm.h"

#include "common/simt.h"
#include "simt/entries/dtype.h"
#include "simt/entry.h"

namespace simt {
namespace {

using namespace longspan::kernels;

struct Rows {
  Device& device;
  const py::dict& arguments;
  DType dtype = dtype_named(value<std::string>(arguments, "dtype"));
  DType weight_dtype = dtype_named(value_or<std::string>(arguments, "weight_dtype", "float32"));
  int64_t C = value<int64_t>(arguments, "C");

  View<2> view(void* data, const Shape& shape) const { return {data, dtype, {shape.at(0), C}, {shape.at(1), 1}}; }
  View<2> in(const char* name) const {
    if (!given(arguments, name)) return {};
    return view(input_bytes(device, arguments, name, size_t(element_size(dtype))), shape(arguments, name));
  }
  View<2> out(const char* name) const {
    const Shape like = shape(arguments, "x");
    return view(output_bytes(device, name, like, numpy_name(dtype)), like);
  }
  const void* vector(const char* name) const {
    return given(arguments, name) ? input_bytes(device, arguments, name, size_t(element_size(weight_dtype))) : nullptr;
  }
  void* vector_out(const char* name) const {
    return value_or(arguments, name, false) ? output_bytes(device, name, {C}, numpy_name(weight_dtype)) : nullptr;
  }
  NormSpec spec() const {
    return {value_or(arguments, "centered", false), value_or(arguments, "eps", 1e-6),
            value_or(arguments, "weight_offset", 0.0)};
  }
  CudaContext context() const {
    const auto get = [](void* self, int64_t bytes) { return static_cast<Device*>(self)->scratch("scratch", size_t(bytes)); };
    return {nullptr, {&device, get}};
  }
};

py::dict norm_fwd(Device& device, const py::dict& arguments) {
  const Rows rows{device, arguments};
  NormTensors io{};
  io.x = rows.in("x"), io.residual = rows.in("residual");
  io.weight = rows.vector("weight"), io.bias = rows.vector("bias"), io.weight_dtype = rows.weight_dtype;
  io.y = rows.out("y");
  if (io.residual.data) io.sum = rows.out("sum");
  io.rstd = output<float>(device, "rstd", {io.x.size[0]}, "float32");
  if (rows.spec().centered) io.mean = output<float>(device, "mean", {io.x.size[0]}, "float32");
  norm_fwd_cuda(rows.spec(), io, rows.context());
  return {};
}
SIMT_ENTRY(norm_fwd);

py::dict norm_bwd(Device& device, const py::dict& arguments) {
  const Rows rows{device, arguments};
  NormGradients io{};
  io.dy = rows.in("dy"), io.dsum = rows.in("dsum"), io.x = rows.in("x");
  io.weight = rows.vector("weight"), io.weight_dtype = rows.weight_dtype;
  io.rstd = input<float>(device, arguments, "rstd");
  io.mean = given(arguments, "mean") ? input<float>(device, arguments, "mean") : nullptr;
  io.dx = rows.out("dx"), io.dweight = rows.vector_out("dweight"), io.dbias = rows.vector_out("dbias");
  norm_bwd_cuda(rows.spec(), io, rows.context());
  return {};
}
SIMT_ENTRY(norm_bwd);

}  // namespace
}  // namespace simt
