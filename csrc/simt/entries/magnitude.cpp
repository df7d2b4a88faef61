// magnitude_histogram(x0, x1, ..., x_dtypes, skip, groups, count, bins) -> counts, squares
// squared_norms(x0, x1, ..., x_dtypes, skip, groups, count) -> squares
// kth_magnitude(x0, x1, ..., x_dtypes, skip, groups, wanted, exact) -> bits, cut, kept, squares
#include "magnitude/magnitude.h"

#include <pybind11/stl.h>

#include "simt/entries/tensors.h"

namespace simt {
namespace {

using namespace longspan::kernels;

std::vector<MagnitudeTensor> magnitude_tensors(Device& device, const py::dict& arguments) {
  const TensorList list(device, arguments);
  const auto groups = value<std::vector<int32_t>>(arguments, "groups");
  std::vector<MagnitudeTensor> tensors;
  for (size_t i = 0; i < groups.size(); ++i) {
    const DType dtype = list.dtype("x", i);
    tensors.push_back({list.data("x", i, dtype, false), dtype, list.size("x", i), groups[i]});
  }
  return tensors;
}

py::dict magnitude_histogram(Device& device, const py::dict& arguments) {
  const auto tensors = magnitude_tensors(device, arguments);
  const auto count = value<int64_t>(arguments, "count");
  const auto* bins = given(arguments, "bins") ? input<int32_t>(device, arguments, "bins") : nullptr;
  const HistogramOutput out{bins, output<int64_t>(device, "counts", {count, bins ? kLowerBins : kUpperBins}, "int64"),
                            output<double>(device, "squares", {count}, "float64")};
  magnitude_histogram_cuda(tensors, count, out, scratch_context(device));
  return {};
}
SIMT_ENTRY(magnitude_histogram);

py::dict squared_norms(Device& device, const py::dict& arguments) {
  const auto tensors = magnitude_tensors(device, arguments);
  const auto count = value<int64_t>(arguments, "count");
  squared_norms_cuda(tensors, count, output<double>(device, "squares", {count}, "float64"), scratch_context(device));
  return {};
}
SIMT_ENTRY(squared_norms);

py::dict kth_magnitude(Device& device, const py::dict& arguments) {
  const auto tensors = magnitude_tensors(device, arguments);
  const Shape groups = shape(arguments, "wanted");
  const KthOutput out{input<int64_t>(device, arguments, "wanted"),
                      value_or(arguments, "exact", true),
                      value_or(arguments, "norms", true),
                      output<int32_t>(device, "bits", groups, "int32"),
                      output<int64_t>(device, "cut", groups, "int64"),
                      output<int64_t>(device, "kept", groups, "int64"),
                      output<double>(device, "squares", {2, groups.at(0)}, "float64")};
  kth_magnitude_cuda(tensors, groups.at(0), out, scratch_context(device));
  return {};
}
SIMT_ENTRY(kth_magnitude);

}  // namespace
}  // namespace simt
