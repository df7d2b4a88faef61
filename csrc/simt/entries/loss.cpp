// cross_entropy_rows(logits [rows, stride], V, labels, ...) -> gradient (in place for float32), losses
// linear_cross_entropy(hidden, weight, labels, ...) -> losses, total and the gradients that were asked for
#include "loss/loss.h"

#include "common/simt.h"
#include "simt/entries/dtype.h"
#include "simt/entries/product.h"
#include "simt/entry.h"

namespace simt {
namespace {

using namespace longspan::kernels;

py::dict cross_entropy_rows(Device& device, const py::dict& arguments) {
  const Shape logits = shape(arguments, "logits");
  const Shape labels = shape(arguments, "labels");
  CrossEntropyRows rows{};
  rows.dtype = dtype_named(value_or<std::string>(arguments, "dtype", "float32"));
  auto* products = input<float>(device, arguments, "logits");
  rows.logits = products;
  rows.gradient_stride = logits.at(1);
  if (value_or(arguments, "gradient", true)) {
    rows.gradient =
        rows.dtype == DType::kFloat32 ? products : output_bytes(device, "gradient", logits, numpy_name(rows.dtype));
    if (rows.dtype == DType::kFloat32) also_output(products, "gradient", logits, "float32");
  }
  rows.rows = logits.at(0), rows.stride = logits.at(1), rows.V = value<int64_t>(arguments, "V");
  rows.index = given(arguments, "index") ? input<int64_t>(device, arguments, "index") : nullptr;
  rows.labels = input<int64_t>(device, arguments, "labels");
  rows.row_weights = given(arguments, "row_weights") ? input<float>(device, arguments, "row_weights") : nullptr;
  rows.bias = given(arguments, "bias") ? input_bytes(device, arguments, "bias", size_t(element_size(rows.dtype))) : nullptr;
  rows.ignore_index = value_or<int64_t>(arguments, "ignore_index", -100);
  rows.scale = value_or(arguments, "scale", 1.f), rows.softcap = value_or(arguments, "softcap", 0.f);
  rows.losses = output<float>(device, "losses", {labels.at(0)}, "float32");
  cross_entropy_rows_cuda(rows, {nullptr, {}, {}});
  return {};
}
SIMT_ENTRY(cross_entropy_rows);

py::dict linear_cross_entropy(Device& device, const py::dict& arguments) {
  const Shape hidden = shape(arguments, "hidden"), weight = shape(arguments, "weight");
  const int64_t T = hidden.at(0), C = hidden.at(1), V = weight.at(0);
  const DType dtype = dtype_named(value<std::string>(arguments, "dtype"));
  const auto element = size_t(element_size(dtype));
  const auto matrix = [&](void* data, int64_t rows) { return View<2>{data, dtype, {rows, C}, {C, 1}}; };
  LinearCrossEntropyTensors io{};
  io.hidden = matrix(input_bytes(device, arguments, "hidden", element), T);
  io.weight = matrix(input_bytes(device, arguments, "weight", element), V);
  io.bias = given(arguments, "bias") ? input_bytes(device, arguments, "bias", element) : nullptr;
  io.labels = input<int64_t>(device, arguments, "labels");
  io.row_weights = given(arguments, "row_weights") ? input<float>(device, arguments, "row_weights") : nullptr;
  if (value_or(arguments, "per_row", false))
    io.losses = output<float>(device, "losses", {T}, "float32");
  else
    io.total = output<float>(device, "total", {1}, "float32");
  const auto wanted = [&](const char* name, int64_t rows) {
    return value_or(arguments, name, false) ? matrix(output_bytes(device, name, {rows, C}, numpy_name(dtype)), rows)
                                            : View<2>{};
  };
  io.dhidden = wanted("dhidden", T), io.dweight = wanted("dweight", V);
  if (value_or(arguments, "dbias", false)) io.dbias = output_bytes(device, "dbias", {V}, numpy_name(dtype));
  const auto get = [](void* self, int64_t bytes) { return static_cast<Device*>(self)->scratch("scratch", size_t(bytes)); };
  linear_cross_entropy_cuda({value<int64_t>(arguments, "segment"), value_or<int64_t>(arguments, "ignore_index", -100),
                             value_or(arguments, "scale", 1.0), value_or(arguments, "softcap", 0.0)},
                            io, {nullptr, {&device, get}, host_product()});
  return {};
}
SIMT_ENTRY(linear_cross_entropy);

}  // namespace
}  // namespace simt
