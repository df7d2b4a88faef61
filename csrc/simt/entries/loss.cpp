// cross_entropy_rows(logits [rows, stride], V, labels, ...) -> gradient (in place for float32), losses
// linear_cross_entropy(hidden, weight, labels, ...) -> losses, total and the gradients that were asked for
#include "loss/loss.h"

#include "common/simt.h"
#include "simt/engine/shadow.h"
#include "simt/entries/dtype.h"
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

double load(const void* x, int64_t i, DType dtype) {
  if (dtype == DType::kFloat32) return static_cast<const float*>(x)[i];
  return __bfloat162float(static_cast<const __nv_bfloat16*>(x)[i]);
}

/// The matrix library of a run: sums in double, rounded once.
void multiply(void*, const GemmArgs& g) {
  for (int64_t i = 0; i < g.m; ++i) {
    for (int64_t j = 0; j < g.n; ++j) {
      double sum = 0;
      for (int64_t k = 0; k < g.k; ++k)
        sum += load(g.a, g.transpose_a ? k * g.lda + i : i * g.lda + k, g.dtype_a) *
               load(g.b, g.transpose_b ? j * g.ldb + k : k * g.ldb + j, g.dtype_b);
      const int64_t at = i * g.ldc + j;
      if (g.dtype_c == DType::kFloat32)
        static_cast<float*>(g.c)[at] = float(sum);
      else
        static_cast<__nv_bfloat16*>(g.c)[at] = __float2bfloat16_rn(float(sum));
    }
    mark_written(static_cast<char*>(g.c) + i * g.ldc * element_size(g.dtype_c), size_t(g.n * element_size(g.dtype_c)));
  }
}

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
                            io, {nullptr, {&device, get}, {nullptr, multiply}});
  return {};
}
SIMT_ENTRY(linear_cross_entropy);

}  // namespace
}  // namespace simt
