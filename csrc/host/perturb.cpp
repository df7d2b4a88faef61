// longspan.kernels.perturb_ and es_update_: noise on lists of plain arrays.
#include "kernels/perturb/perturb.h"

#include <pybind11/stl.h>

#include "host/arguments.h"
#include "host/bind.h"
#include "host/device.h"

namespace longspan::host {
namespace {

using Objects = std::vector<py::object>;
using MaybeIntegers = std::optional<std::vector<int64_t>>;

/// The arrays of one call, and what the kernels are told of them.
struct Call {
  ArrayLists arrays;
  std::vector<kernels::PerturbTensor> tensors;

  Call(const Objects& targets, const std::optional<Objects>& sources, const std::optional<Objects>& copies,
       const MaybeIntegers& tensor_ids, const MaybeIntegers& offsets, int64_t stream)
      : arrays("targets[0]", stream) {
    if (targets.empty()) throw py::value_error("targets is empty; give at least one array");
    const auto check = [&](const char* name, const auto& list) {
      if (list) check_length(name, list->size(), "targets", targets.size());
    };
    check("sources", sources), check("copies", copies), check("tensor_ids", tensor_ids), check("offsets", offsets);
    for (size_t i = 0; i < targets.size(); ++i) {
      kernels::PerturbTensor t{};
      const Array& target = arrays.add(targets[i], element_name("targets", i), true);
      t.target = target.data, t.target_dtype = noisy_dtype(target, element_name("targets", i));
      t.source = t.target, t.source_dtype = t.target_dtype;
      if (sources) {
        const Array& source = beside((*sources)[i], element_name("sources", i), target, false);
        t.source = source.data, t.source_dtype = noisy_dtype(source, element_name("sources", i));
      }
      if (copies) {
        const Array& copy = beside((*copies)[i], element_name("copies", i), target, true);
        t.copy = copy.data, t.copy_dtype = noisy_dtype(copy, element_name("copies", i));
      }
      t.size = target.numel(), t.offset = offsets ? (*offsets)[i] : 0;
      const int64_t id = tensor_ids ? (*tensor_ids)[i] : int64_t(i);
      if (id < 0 || id > 0xFFFFFFFF)
        throw py::value_error(element_name("tensor_ids", i) + " is " + std::to_string(id) + "; allowed: 0 to 2^32 - 1");
      if (t.offset < 0)
        throw py::value_error(element_name("offsets", i) + " is " + std::to_string(t.offset) + "; it must not be negative");
      t.tensor_id = uint32_t(id);
      tensors.push_back(t);
    }
  }

  /// An array of the target's shape.
  const Array& beside(const py::handle& object, const std::string& name, const Array& target, bool written) {
    const Array& x = arrays.add(object, name, written);
    if (x.shape != target.shape) throw py::value_error(name + " has another shape than its target");
    return x;
  }

  static kernels::DType noisy_dtype(const Array& x, const std::string& name) {
    if (x.dtype == "float64")
      throw py::value_error(name + " is float64; allowed: float32, " + (x.cuda ? "float16, bfloat16" : "bfloat16"));
    return dtype_of(x, name);
  }

  kernels::NoiseSpec noise(const py::handle& seeds, const py::handle& steps, int64_t members, int64_t noise_stream,
                           const std::string& distribution) {
    if (distribution != "gaussian" && distribution != "rademacher")
      throw py::value_error("distribution is '" + distribution + "'; allowed: gaussian, rademacher");
    if (noise_stream < 0 || noise_stream > 0xFFFFFFFF)
      throw py::value_error("noise_stream is " + std::to_string(noise_stream) + "; allowed: 0 to 2^32 - 1");
    return {distribution == "gaussian" ? kernels::Distribution::kGaussian : kernels::Distribution::kRademacher,
            uint32_t(noise_stream), arrays.vector<int64_t>(seeds, "seeds", "int64", members),
            arrays.vector<int64_t>(steps, "steps", "int64", members), members};
  }
};

void perturb_(const Objects& targets, const py::handle& scale_, const py::handle& seed, const py::handle& step,
              const std::optional<Objects>& sources, const MaybeIntegers& tensor_ids, const MaybeIntegers& offsets,
              int64_t noise_stream, const std::string& distribution, int threads, int64_t stream) {
  Call call(targets, sources, {}, tensor_ids, offsets, stream);
  const kernels::NoiseSpec noise = call.noise(seed, step, 1, noise_stream, distribution);
  const float* scale = call.arrays.vector<float>(scale_, "scale", "float32", 1);
  run_on(
      call.arrays.first(), threads, stream,
      [&](const auto& context) { kernels::perturb_cpu(noise, scale, call.tensors, context); },
      [&](const auto& context) { LONGSPAN_CUDA_ENTRY(kernels::perturb_cuda(noise, scale, call.tensors, context)); });
}

void es_update_(const Objects& targets, const py::handle& coefficients_, const py::handle& seeds, const py::handle& steps,
                const py::object& alpha, const py::object& decay, const std::optional<Objects>& copies,
                const MaybeIntegers& tensor_ids, const MaybeIntegers& offsets, int64_t noise_stream,
                const std::string& distribution, int threads, int64_t stream) {
  Call call(targets, {}, copies, tensor_ids, offsets, stream);
  const Array coefficients = borrow(coefficients_, "coefficients", "float32", 1, stream);
  const int64_t members = coefficients.shape[0];
  const kernels::NoiseSpec noise = call.noise(seeds, steps, members, noise_stream, distribution);
  const kernels::EsWeights weights{
      call.arrays.vector<float>(coefficients_, "coefficients", "float32", members),
      alpha.is_none() ? nullptr : call.arrays.vector<float>(alpha, "alpha", "float32", 1),
      decay.is_none() ? nullptr : call.arrays.vector<float>(decay, "decay", "float32", int64_t(targets.size()))};
  run_on(
      call.arrays.first(), threads, stream,
      [&](const auto& context) { kernels::es_update_cpu(noise, weights, call.tensors, context); },
      [&](const auto& context) { LONGSPAN_CUDA_ENTRY(kernels::es_update_cuda(noise, weights, call.tensors, context)); });
}

}  // namespace

void bind_perturb(py::module_& m) {
  m.def("perturb_", &perturb_, py::arg("targets"), py::arg("scale"), py::arg("seed"), py::arg("step"), py::kw_only(),
        py::arg("sources") = py::none(), py::arg("tensor_ids") = py::none(), py::arg("offsets") = py::none(),
        py::arg("noise_stream") = 0, py::arg("distribution") = "gaussian", py::arg("threads") = 0, py::arg("stream") = 1,
        R"(targets[i] = sources[i] + scale z_i for lists of contiguous arrays, in place; sources None: the targets.

z_i is a function of seed, step, tensor_ids[i] (0, 1, ... by default), noise_stream and the logical index, which begins at
offsets[i]. distribution: "gaussian" or "rademacher". scale float32 [1], seed and step int64 [1], in the memory of the
targets. float32 and bfloat16, float16 on CUDA.)");
  m.def("es_update_", &es_update_, py::arg("targets"), py::arg("coefficients"), py::arg("seeds"), py::arg("steps"),
        py::kw_only(), py::arg("alpha") = py::none(), py::arg("decay") = py::none(), py::arg("copies") = py::none(),
        py::arg("tensor_ids") = py::none(), py::arg("offsets") = py::none(), py::arg("noise_stream") = 0,
        py::arg("distribution") = "gaussian", py::arg("threads") = 0, py::arg("stream") = 1,
        R"(targets[i] = (1 - decay[i]) targets[i] + alpha sum_n coefficients[n] z_i(seeds[n], steps[n]), in place.

coefficients float32 [N], seeds and steps int64 [N], alpha float32 [1] or None for 1, decay float32, one a target, or None
for 0. copies: arrays that take the same values, rounded to their dtypes. Otherwise as perturb_.)");
}

}  // namespace longspan::host
