// perturb(x0, x1, ..., dtypes, tensor_ids, offsets, distribution, stream, seeds, steps, scale) -> y0, y1, ...
// es_update(the same with coefficients, alpha, decay for scale) -> y0, ..., copy0, ...
// Tensors begin `skip` elements into their arrays. y is x itself, or new where target_dtypes are given; copy_dtypes ask for
// copies.
#include "perturb/perturb.h"

#include "common/simt.h"
#include "simt/entries/dtype.h"
#include "simt/entry.h"

namespace simt {
namespace {

using namespace longspan::kernels;

template <class T>
std::vector<T> list(const py::dict& arguments, const char* name) {
  std::vector<T> values;
  if (given(arguments, name))
    for (const py::handle each : py::list(argument(arguments, name))) values.push_back(each.cast<T>());
  return values;
}

struct NoiseCall {
  NoiseSpec noise;
  std::vector<PerturbTensor> tensors;

  NoiseCall(Device& device, const py::dict& arguments) {
    const auto dtypes = list<std::string>(arguments, "dtypes"), targets = list<std::string>(arguments, "target_dtypes");
    const auto copies = list<std::string>(arguments, "copy_dtypes");
    const auto ids = list<int64_t>(arguments, "tensor_ids"), offsets = list<int64_t>(arguments, "offsets");
    const int64_t skip = value_or<int64_t>(arguments, "skip", 0);
    for (size_t i = 0; i < dtypes.size(); ++i) {
      const std::string x = "x" + std::to_string(i), y = "y" + std::to_string(i), copy = "copy" + std::to_string(i);
      const Shape s = shape(arguments, x.c_str());
      const auto at = [&](void* data, DType dtype) { return static_cast<char*>(data) + skip * element_size(dtype); };
      PerturbTensor t{};
      t.source_dtype = t.target_dtype = dtype_named(dtypes[i]);
      void* source = input_bytes(device, arguments, x.c_str(), size_t(element_size(t.source_dtype)));
      t.source = t.target = at(source, t.source_dtype);
      if (targets.empty()) {
        also_output(source, y.c_str(), s, numpy_name(t.source_dtype));
      } else {
        t.target_dtype = dtype_named(targets[i]);
        t.target = at(output_bytes(device, y.c_str(), s, numpy_name(t.target_dtype)), t.target_dtype);
      }
      if (!copies.empty()) {
        t.copy_dtype = dtype_named(copies[i]);
        t.copy = at(output_bytes(device, copy.c_str(), s, numpy_name(t.copy_dtype)), t.copy_dtype);
      }
      t.size = s.at(0) - skip, t.offset = offsets.at(i), t.tensor_id = uint32_t(ids.at(i));
      tensors.push_back(t);
    }
    const bool gaussian = value<std::string>(arguments, "distribution") == "gaussian";
    noise = {gaussian ? Distribution::kGaussian : Distribution::kRademacher, value<uint32_t>(arguments, "stream"),
             input<int64_t>(device, arguments, "seeds"), input<int64_t>(device, arguments, "steps"),
             shape(arguments, "seeds").at(0)};
  }
};

py::dict perturb(Device& device, const py::dict& arguments) {
  const NoiseCall call(device, arguments);
  perturb_cuda(call.noise, input<float>(device, arguments, "scale"), call.tensors, {});
  return {};
}
SIMT_ENTRY(perturb);

py::dict es_update(Device& device, const py::dict& arguments) {
  const NoiseCall call(device, arguments);
  const auto optional = [&](const char* name) {
    return given(arguments, name) ? input<float>(device, arguments, name) : nullptr;
  };
  es_update_cuda(call.noise, {input<float>(device, arguments, "coefficients"), optional("alpha"), optional("decay")},
                 call.tensors, {});
  return {};
}
SIMT_ENTRY(es_update);

}  // namespace
}  // namespace simt
