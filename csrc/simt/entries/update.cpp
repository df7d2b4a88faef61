// masked_adamw(p0, g0, m0, v0, c0, mask0, p1, ..., p_dtypes, g_dtypes, c_dtypes, skip, kinds, columns, groups, numbers,
// bits,
//              cut, factors, scalars, mode, zero_grad, stochastic, seed) -> p0, g0, m0, v0, c0, p1, ...
// masked_sgd(...) the same without v0
#include "update/update.h"

#include <pybind11/stl.h>

#include "simt/entries/tensors.h"

namespace simt {
namespace {

using namespace longspan::kernels;

void update(Device& device, const py::dict& arguments, decltype(masked_adamw_cuda)& step) {
  const TensorList list(device, arguments);
  const auto kinds = value<std::vector<int>>(arguments, "kinds");
  const auto columns = value<std::vector<int64_t>>(arguments, "columns"),
             numbers = value<std::vector<int64_t>>(arguments, "numbers");
  const auto groups = value<std::vector<int32_t>>(arguments, "groups");
  std::vector<UpdateTensor> tensors;
  for (size_t i = 0; i < kinds.size(); ++i) {
    UpdateTensor x{};
    x.param_dtype = list.dtype("p", i), x.grad_dtype = list.dtype("g", i), x.copy_dtype = list.dtype("c", i);
    x.param = list.data("p", i, x.param_dtype, true), x.grad = list.data("g", i, x.grad_dtype, true);
    x.first = static_cast<float*>(list.data("m", i, DType::kFloat32, true));
    x.second = static_cast<float*>(list.data("v", i, DType::kFloat32, true));
    x.copy = list.data("c", i, x.copy_dtype, true);
    const std::string mask = "mask" + std::to_string(i);
    if (given(arguments, mask.c_str())) x.mask = input<uint8_t>(device, arguments, mask.c_str());
    x.size = list.size("p", i), x.columns = columns.at(i), x.kind = MaskKind(kinds[i]);
    x.group = groups.at(i), x.number = numbers.at(i);
    tensors.push_back(x);
  }
  const bool thresholds = given(arguments, "bits");
  const UpdateSpec spec{MaskMode(value<int>(arguments, "mode")),
                        thresholds ? input<int32_t>(device, arguments, "bits") : nullptr,
                        thresholds ? input<int64_t>(device, arguments, "cut") : nullptr,
                        input<float>(device, arguments, "factors"),
                        input<float>(device, arguments, "scalars"),
                        value_or(arguments, "zero_grad", false),
                        value_or(arguments, "stochastic", false),
                        uint64_t(value_or<int64_t>(arguments, "seed", 0))};
  step(spec, tensors, scratch_context(device));
}

py::dict masked_adamw(Device& device, const py::dict& arguments) {
  update(device, arguments, masked_adamw_cuda);
  return {};
}
SIMT_ENTRY(masked_adamw);

py::dict masked_sgd(Device& device, const py::dict& arguments) {
  update(device, arguments, masked_sgd_cuda);
  return {};
}
SIMT_ENTRY(masked_sgd);

}  // namespace
}  // namespace simt
