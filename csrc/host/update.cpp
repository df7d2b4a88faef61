// longspan.kernels.masked_adamw_ and masked_sgd_: optimiser steps in place on plain arrays.
#include "kernels/update/update.h"

#include <pybind11/stl.h>

#include "host/arguments.h"
#include "host/bind.h"
#include "host/device.h"

namespace longspan::host {
namespace {

using kernels::MaskKind;

using Objects = std::vector<py::object>;

/// A list with one entry a parameter; None: of nothing but None.
Objects listed(const py::object& objects, const char* name, size_t count) {
  if (objects.is_none()) return Objects(count, py::none());
  auto out = objects.cast<Objects>();
  check_length(name, out.size(), "params", count);
  return out;
}

MaskKind kind_of(const std::string& kind) {
  constexpr std::pair<const char*, MaskKind> kinds[] = {{"all", MaskKind::kAll},         {"threshold", MaskKind::kThreshold},
                                                        {"bits", MaskKind::kBits},       {"rows", MaskKind::kRows},
                                                        {"columns", MaskKind::kColumns}, {"none", MaskKind::kNone}};
  for (const auto& [name, value] : kinds)
    if (kind == name) return value;
  throw py::value_error("kind is '" + kind + "'; allowed: all, threshold, bits, rows, columns, none");
}

kernels::MaskMode mode_of(const std::string& mode) {
  if (mode == "grad") return kernels::MaskMode::kGradient;
  if (mode == "update") return kernels::MaskMode::kUpdate;
  if (mode == "freeze") return kernels::MaskMode::kFreeze;
  throw py::value_error("mode is '" + mode + "'; allowed: grad, update, freeze");
}

/// What both steps are given beside their state.
struct Shared {
  py::object copies, kinds, masks, groups, numbers, bits, cut, factors, scalars;
  std::string mode;
  bool zero_grad;
  py::object stochastic_seed;
  int threads;
  int64_t stream;
};

/// The arrays of a call, and what the kernels are told of them.
struct Call {
  ArrayLists arrays;
  std::vector<kernels::UpdateTensor> tensors;
  int64_t groups = 0;  // of thresholds that masks name

  Call(const Objects& params, const Objects& grads, const Objects& firsts, const char* first_name, const Objects& seconds,
       const Shared& shared)
      : arrays("params[0]", shared.stream) {
    if (params.empty()) throw py::value_error("params is empty; give at least one array");
    const size_t count = params.size();
    const Objects copies = listed(shared.copies, "copies", count), masks = listed(shared.masks, "masks", count),
                  kinds = listed(shared.kinds, "kinds", count), of_groups = listed(shared.groups, "groups", count),
                  numbers = listed(shared.numbers, "numbers", count);
    for (size_t i = 0; i < count; ++i) {
      kernels::UpdateTensor x{};
      const Array& param = arrays.add(params[i], element_name("params", i), true);
      x.param = param.data, x.param_dtype = dtype_of(param, element_name("params", i));
      x.size = param.numel(), x.columns = param.shape.empty() ? 1 : param.shape.back();
      const Array& grad = beside(grads[i], element_name("grads", i), param, shared.zero_grad);
      x.grad = grad.data, x.grad_dtype = dtype_of(grad, element_name("grads", i));
      x.first = moments(firsts[i], element_name(first_name, i), param);
      x.second = moments(seconds[i], element_name("exp_avg_sqs", i), param);
      if (!copies[i].is_none()) {
        const Array& copy = beside(copies[i], element_name("copies", i), param, true);
        x.copy = copy.data, x.copy_dtype = dtype_of(copy, element_name("copies", i));
      }
      x.kind = kinds[i].is_none() ? MaskKind::kAll : kind_of(kinds[i].cast<std::string>());
      const int64_t rows = x.size / std::max<int64_t>(1, x.columns);
      const int64_t length = x.kind == MaskKind::kBits      ? (x.size + 7) / 8
                             : x.kind == MaskKind::kRows    ? rows
                             : x.kind == MaskKind::kColumns ? x.columns
                                                            : 0;
      if (length) x.mask = arrays.vector<uint8_t>(masks[i], element_name("masks", i).c_str(), "uint8", length);
      x.group = of_groups[i].is_none() ? 0 : of_groups[i].cast<int32_t>();
      x.number = numbers[i].is_none() ? 0 : numbers[i].cast<int64_t>();
      if (x.group < 0) throw py::value_error(element_name("groups", i) + " is negative");
      if (x.kind == MaskKind::kThreshold) groups = std::max<int64_t>(groups, x.group + 1);
      tensors.push_back(x);
    }
  }

  const Array& beside(const py::handle& object, const std::string& name, const Array& param, bool written) {
    const Array& x = arrays.add(object, name, written);
    if (x.shape != param.shape) throw py::value_error(name + " has another shape than its param");
    return x;
  }

  float* moments(const py::handle& object, const std::string& name, const Array& param) {
    if (object.is_none()) return nullptr;
    return static_cast<float*>(arrays.add(object, name, param.shape, "float32", true).data);
  }

  /// A vector with an entry for each group that masks name.
  template <class T>
  const T* of_groups(const py::object& object, const char* name, const char* dtype) {
    if (!groups) return nullptr;
    if (object.is_none()) throw py::value_error(std::string(name) + " is None; masks by threshold need it");
    const Array& x = arrays.add(object, name);
    if (x.shape.size() != 1 || x.shape[0] < groups || x.dtype != dtype)
      throw py::value_error(std::string(name) + " must be " + dtype + " with at least " + std::to_string(groups) +
                            " entries, one a group");
    return static_cast<const T*>(x.data);
  }
};

template <class OnCpu, class OnCuda>
void step(Call& call, const Shared& shared, int64_t scalars, OnCpu&& on_cpu, OnCuda&& on_cuda) {
  const auto count = int64_t(call.tensors.size());
  const kernels::UpdateSpec spec{mode_of(shared.mode),
                                 call.of_groups<int32_t>(shared.bits, "bits", "int32"),
                                 call.of_groups<int64_t>(shared.cut, "cut", "int64"),
                                 call.arrays.vector<float>(shared.factors, "factors", "float32", count),
                                 call.arrays.vector<float>(shared.scalars, "scalars", "float32", scalars),
                                 shared.zero_grad,
                                 !shared.stochastic_seed.is_none(),
                                 shared.stochastic_seed.is_none() ? 0 : uint64_t(shared.stochastic_seed.cast<int64_t>())};
  run_on(
      call.arrays.first(), shared.threads, shared.stream, [&](const auto& context) { on_cpu(spec, call.tensors, context); },
      [&](const auto& context) { on_cuda(spec, call.tensors, context); });
}

void masked_adamw_(const Objects& params, const Objects& grads, const Objects& exp_avgs, const Objects& exp_avg_sqs,
                   const Shared& shared) {
  check_length("grads", grads.size(), "params", params.size());
  check_length("exp_avgs", exp_avgs.size(), "params", params.size());
  check_length("exp_avg_sqs", exp_avg_sqs.size(), "params", params.size());
  Call call(params, grads, exp_avgs, "exp_avgs", exp_avg_sqs, shared);
  step(call, shared, 8, &kernels::masked_adamw_cpu, [](const auto& spec, const auto& tensors, const auto& context) {
    (void)spec, (void)tensors;
    LONGSPAN_CUDA_ENTRY(kernels::masked_adamw_cuda(spec, tensors, context));
  });
}

void masked_sgd_(const Objects& params, const Objects& grads, const py::object& buffers, const Shared& shared) {
  check_length("grads", grads.size(), "params", params.size());
  const Objects first = listed(buffers, "buffers", params.size()), none(params.size(), py::none());
  Call call(params, grads, first, "buffers", none, shared);
  step(call, shared, 3, &kernels::masked_sgd_cpu, [](const auto& spec, const auto& tensors, const auto& context) {
    (void)spec, (void)tensors;
    LONGSPAN_CUDA_ENTRY(kernels::masked_sgd_cuda(spec, tensors, context));
  });
}

}  // namespace

void bind_update(py::module_& m) {
  m.def(
      "masked_adamw_",
      [](const Objects& params, const Objects& grads, const Objects& exp_avgs, const Objects& exp_avg_sqs,
         const py::object& scalars, const py::object& factors, const py::object& copies, const py::object& kinds,
         const py::object& masks, const py::object& groups, const py::object& numbers, const py::object& bits,
         const py::object& cut, const std::string& mode, bool zero_grad, const py::object& stochastic_seed, int threads,
         int64_t stream) {
        masked_adamw_(params, grads, exp_avgs, exp_avg_sqs,
                      {copies, kinds, masks, groups, numbers, bits, cut, factors, scalars, mode, zero_grad, stochastic_seed,
                       threads, stream});
      },
      py::arg("params"), py::arg("grads"), py::arg("exp_avgs"), py::arg("exp_avg_sqs"), py::arg("scalars"),
      py::arg("factors"), py::kw_only(), py::arg("copies") = py::none(), py::arg("kinds") = py::none(),
      py::arg("masks") = py::none(), py::arg("groups") = py::none(), py::arg("numbers") = py::none(),
      py::arg("bits") = py::none(), py::arg("cut") = py::none(), py::arg("mode") = "grad", py::arg("zero_grad") = false,
      py::arg("stochastic_seed") = py::none(), py::arg("threads") = 0, py::arg("stream") = 1,
      R"(One AdamW step in place on lists of arrays, where a mask says which elements take part.

params: float32 or bfloat16; grads: float32 or bfloat16; exp_avgs, exp_avg_sqs: float32; all contiguous and of one shape. scalars
float32 [8]: 1 - lr weight_decay, beta1, 1 - beta1, beta2, 1 - beta2, lr / (1 - beta1^t), sqrt(1 - beta2^t), eps. factors float32
[n]: of the gradients; NaN leaves a tensor as it is. copies: bfloat16 arrays that get the rounded weights, or None. kinds: all,
threshold (bits and cut of kth_magnitude, group and number of the first element), bits, rows, columns (masks: uint8), none. mode:
grad, update, freeze. Streams as in attention_fwd.)");
  m.def(
      "masked_sgd_",
      [](const Objects& params, const Objects& grads, const py::object& buffers, const py::object& scalars,
         const py::object& factors, const py::object& copies, const py::object& kinds, const py::object& masks,
         const py::object& groups, const py::object& numbers, const py::object& bits, const py::object& cut,
         const std::string& mode, bool zero_grad, const py::object& stochastic_seed, int threads, int64_t stream) {
        masked_sgd_(params, grads, buffers,
                    {copies, kinds, masks, groups, numbers, bits, cut, factors, scalars, mode, zero_grad, stochastic_seed,
                     threads, stream});
      },
      py::arg("params"), py::arg("grads"), py::arg("buffers"), py::arg("scalars"), py::arg("factors"), py::kw_only(),
      py::arg("copies") = py::none(), py::arg("kinds") = py::none(), py::arg("masks") = py::none(),
      py::arg("groups") = py::none(), py::arg("numbers") = py::none(), py::arg("bits") = py::none(),
      py::arg("cut") = py::none(), py::arg("mode") = "grad", py::arg("zero_grad") = false,
      py::arg("stochastic_seed") = py::none(), py::arg("threads") = 0, py::arg("stream") = 1,
      R"(One step of stochastic gradient descent in place; buffers: momentum, float32, or None. scalars float32 [3]: lr, momentum,
weight_decay. All else as in masked_adamw_.)");
}

}  // namespace longspan::host
