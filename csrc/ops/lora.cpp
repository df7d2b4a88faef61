// torch ops longspan::lora_linear_fwd and lora_linear_bwd: check, allocate, launch.
#include "kernels/lora/lora.h"

#include <string>
#include <tuple>

#include "ops/cuda.h"
#include "ops/tensor.h"

namespace longspan::ops {
namespace {

using MaybeTensor = std::optional<Tensor>;
using Tensors = std::vector<Tensor>;
using MaybeTensors = std::vector<MaybeTensor>;

/// Where an op runs.
struct Cpu {
  template <class... Arguments>
  static void fwd(const Tensor& like, const Arguments&... arguments) {
    TorchContext torch_context(like);
    kernels::lora_linear_fwd_cpu(arguments..., torch_context.context());
  }
  template <class... Arguments>
  static void bwd(const Tensor& like, const Arguments&... arguments) {
    TorchContext torch_context(like);
    kernels::lora_linear_bwd_cpu(arguments..., torch_context.context());
  }
};

#ifdef LONGSPAN_WITH_CUDA
struct Cuda {
  template <class... Arguments>
  static void fwd(const Tensor& like, const Arguments&... arguments) {
    TorchCudaContext torch_context(like);
    kernels::lora_linear_fwd_cuda(arguments..., torch_context.context());
  }
  template <class... Arguments>
  static void bwd(const Tensor& like, const Arguments&... arguments) {
    TorchCudaContext torch_context(like);
    kernels::lora_linear_bwd_cuda(arguments..., torch_context.context());
  }
};
#endif

const void* vector_data(const MaybeTensor& x, int64_t length, const char* name) {
  if (!x) return nullptr;
  STD_TORCH_CHECK(x->dim() == 1 && x->size(0) == length && x->is_contiguous(), "longspan::lora_linear: ", name,
                  " must be contiguous and have length ", length);
  return x->const_data_ptr();
}

/// In a list, no tensor is one of shape [0]: autograd takes lists of tensors only.
MaybeTensor given(const Tensor& x) { return x.dim() == 1 && x.size(0) == 0 ? MaybeTensor() : MaybeTensor(x); }
MaybeTensors given(const Tensors& list) {
  MaybeTensors out;
  for (const Tensor& x : list) out.push_back(given(x));
  return out;
}

/// The parts of one call that both directions are given.
struct Call {
  kernels::LoraInput in;
  std::vector<kernels::LoraProjection> projections;
  int64_t columns = 0;  // of s

  Call(const Tensor& x, const MaybeTensor& norm_weight, const MaybeTensor& norm_bias, const std::string& norm, double eps,
       double weight_offset, const Tensors& weights, const MaybeTensors& biases, const MaybeTensors& lora_a,
       const MaybeTensors& lora_b, const std::vector<double>& scalings, double dropout, const MaybeTensor& seeds)
      : in{} {
    STD_TORCH_CHECK(norm == "none" || norm == "rms" || norm == "layer",
                    "longspan::lora_linear: norm must be none, rms or layer");
    const size_t count = weights.size();
    STD_TORCH_CHECK(count >= 1 && int64_t(count) <= kernels::kLoraGroup && biases.size() == count &&
                        lora_a.size() == count && lora_b.size() == count && scalings.size() == count,
                    "longspan::lora_linear: lists differ in length, or are empty or longer than ", kernels::kLoraGroup);
    in.x = view_of<2>(x);
    const int64_t C = in.x.size[1];
    in.normed = norm != "none";
    in.norm = {norm == "layer", eps, weight_offset};
    in.norm_weight = vector_data(norm_weight, C, "norm_weight"), in.norm_bias = vector_data(norm_bias, C, "norm_bias");
    in.norm_dtype = norm_weight ? dtype_of(*norm_weight) : norm_bias ? dtype_of(*norm_bias) : in.x.dtype;
    in.dropout = dropout;
    STD_TORCH_CHECK(dropout >= 0 && dropout < 1, "longspan::lora_linear: dropout_p must be in [0, 1)");
    STD_TORCH_CHECK(dropout == 0 || seeds, "longspan::lora_linear: dropout needs seeds");
    if (dropout > 0) {
      in.seeds = static_cast<const int64_t*>(vector_data(seeds, int64_t(count), "seeds"));
      STD_TORCH_CHECK(seeds->scalar_type() == ScalarType::Long, "longspan::lora_linear: seeds must be int64");
    }
    for (size_t i = 0; i < count; ++i) {
      kernels::LoraProjection projection{};
      projection.weight = view_of<2>(weights[i]);
      const int64_t N = projection.weight.size[0];
      STD_TORCH_CHECK(projection.weight.size[1] == C && projection.weight.dtype == in.x.dtype,
                      "longspan::lora_linear: weight and x do not fit");
      projection.bias = vector_data(biases[i], N, "bias");
      projection.scaling = scalings[i];
      STD_TORCH_CHECK(lora_a[i].has_value() == lora_b[i].has_value(),
                      "longspan::lora_linear: lora_a and lora_b go together");
      if (lora_a[i]) {
        projection.lora_a = view_of<2>(*lora_a[i]), projection.lora_b = view_of<2>(*lora_b[i]);
        const auto &a = projection.lora_a, &b = projection.lora_b;
        STD_TORCH_CHECK(a.size[1] == C && b.size[0] == N && a.size[0] == b.size[1] && a.dtype == b.dtype &&
                            (a.dtype == in.x.dtype || a.dtype == kernels::statistics_dtype(in.x.dtype)),
                        "longspan::lora_linear: lora_a, lora_b and the weight do not fit");
        columns += a.size[0];
      }
      projections.push_back(projection);
    }
  }
};

template <class Device>
std::tuple<Tensors, Tensor, Tensor, Tensor> lora_linear_fwd(const Tensor& x, MaybeTensor norm_weight, MaybeTensor norm_bias,
                                                            StringHandle norm_name, double eps, double weight_offset,
                                                            Tensors weights, Tensors bias_list, Tensors a_list,
                                                            Tensors b_list, std::vector<double> scalings,
                                                            Tensors residual_list, double dropout, MaybeTensor seeds) {
  const MaybeTensors biases = given(bias_list), lora_a = given(a_list), lora_b = given(b_list),
                     residuals = given(residual_list);
  const std::string norm = taken(norm_name);
  Call call(x, norm_weight, norm_bias, norm, eps, weight_offset, weights, biases, lora_a, lora_b, scalings, dropout, seeds);
  STD_TORCH_CHECK(residuals.size() == weights.size(), "longspan::lora_linear: lists differ in length");
  const int64_t T = x.size(0);
  const auto statistics = [&](bool wanted) { return torch::stable::new_empty(x, {wanted ? T : 0}, statistics_type(x)); };
  Tensors ys;
  std::vector<kernels::LoraOutput> outputs;
  for (size_t i = 0; i < weights.size(); ++i) {
    ys.push_back(torch::stable::new_empty(x, {T, weights[i].size(0)}));
    outputs.push_back({view_of<2>(ys[i]), {}});
    if (!residuals[i]) continue;
    outputs[i].residual = view_of<2>(*residuals[i]);
    STD_TORCH_CHECK(residuals[i]->size(0) == T && residuals[i]->size(1) == weights[i].size(0) &&
                        residuals[i]->scalar_type() == x.scalar_type(),
                    "longspan::lora_linear: a residual does not fit");
  }
  Tensor s = torch::stable::new_empty(x, {T, call.columns}, statistics_type(x));
  Tensor rstd = statistics(call.in.normed), mean = statistics(call.in.normed && call.in.norm.centered);
  call.in.rstd = call.in.normed ? rstd.mutable_data_ptr() : nullptr;
  call.in.mean = call.in.normed && call.in.norm.centered ? mean.mutable_data_ptr() : nullptr;
  Device::fwd(x, call.in, call.projections.data(), outputs.data(), s.mutable_data_ptr(), int64_t(weights.size()));
  return {ys, s, rstd, mean};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensors, Tensors, Tensors, Tensors> lora_linear_bwd(
    MaybeTensors dys, const Tensor& x, MaybeTensor norm_weight, MaybeTensor norm_bias, StringHandle norm_name, double eps,
    double weight_offset, Tensors weights, Tensors bias_list, Tensors a_list, Tensors b_list, std::vector<double> scalings,
    double dropout, MaybeTensor seeds, const Tensor& s, const Tensor& rstd, const Tensor& mean, bool need_dx,
    bool need_dnorm_weight, bool need_dnorm_bias, std::vector<int64_t> need_dweights, std::vector<int64_t> need_dbiases,
    std::vector<int64_t> need_dlora_a, std::vector<int64_t> need_dlora_b) {
  const MaybeTensors biases = given(bias_list), lora_a = given(a_list), lora_b = given(b_list);
  const std::string norm = taken(norm_name);
  Call call(x, norm_weight, norm_bias, norm, eps, weight_offset, weights, biases, lora_a, lora_b, scalings, dropout, seeds);
  const size_t count = weights.size();
  const int64_t T = x.size(0), C = x.size(1);
  STD_TORCH_CHECK(dys.size() == count && need_dweights.size() == count && need_dbiases.size() == count &&
                      need_dlora_a.size() == count && need_dlora_b.size() == count,
                  "longspan::lora_linear: lists differ in length");
  STD_TORCH_CHECK(s.is_contiguous() && s.size(0) == T && s.size(1) == call.columns && s.scalar_type() == statistics_type(x),
                  "longspan::lora_linear: s does not fit x");
  STD_TORCH_CHECK(!call.in.normed || (rstd.is_contiguous() && rstd.size(0) == T),
                  "longspan::lora_linear: rstd does not fit x");
  STD_TORCH_CHECK((!need_dnorm_weight || norm_weight) && (!need_dnorm_bias || norm_bias),
                  "longspan::lora_linear: a gradient of nothing is wanted");
  if (call.in.normed) {
    call.in.rstd = const_cast<void*>(rstd.const_data_ptr());
    call.in.mean = call.in.norm.centered ? const_cast<void*>(mean.const_data_ptr()) : nullptr;
  }
  const auto none = [&] { return torch::stable::new_empty(x, {0}); };  // one each: outputs of an op do not share memory
  const auto like = [&](bool wanted, const Tensor& given) {
    if (!wanted) return torch::stable::new_empty(given, {0});
    return given.dim() == 1 ? torch::stable::new_empty(given, {given.size(0)})
                            : torch::stable::new_empty(given, {given.size(0), given.size(1)});
  };
  Tensors dweights, dbiases, das, dbs;
  std::vector<kernels::LoraGradient> gradients;
  for (size_t i = 0; i < count; ++i) {
    const bool bias = need_dbiases[i] && biases[i], a = need_dlora_a[i] && lora_a[i], b = need_dlora_b[i] && lora_b[i];
    dweights.push_back(like(need_dweights[i] != 0, weights[i]));
    dbiases.push_back(bias ? like(true, *biases[i]) : none());
    das.push_back(a ? like(true, *lora_a[i]) : none());
    dbs.push_back(b ? like(true, *lora_b[i]) : none());
    kernels::LoraGradient g{};
    if (dys[i]) {
      g.dy = view_of<2>(*dys[i]);
      STD_TORCH_CHECK(g.dy.size[0] == T && g.dy.size[1] == weights[i].size(0) && g.dy.dtype == call.in.x.dtype,
                      "longspan::lora_linear: dy does not fit");
    }
    if (need_dweights[i]) g.dweight = view_of<2>(dweights[i]);
    if (bias) g.dbias = dbiases[i].mutable_data_ptr();
    if (a) g.dlora_a = view_of<2>(das[i]);
    if (b) g.dlora_b = view_of<2>(dbs[i]);
    gradients.push_back(g);
  }
  Tensor dx = need_dx ? torch::stable::new_empty(x, {T, C}) : none();
  Tensor dnorm_weight = need_dnorm_weight ? like(true, *norm_weight) : none();
  Tensor dnorm_bias = need_dnorm_bias ? like(true, *norm_bias) : none();
  const kernels::LoraInputGradient input{need_dx ? view_of<2>(dx) : kernels::View<2>{},
                                         need_dnorm_weight ? dnorm_weight.mutable_data_ptr() : nullptr,
                                         need_dnorm_bias ? dnorm_bias.mutable_data_ptr() : nullptr};
  Device::bwd(x, call.in, call.projections.data(), gradients.data(), input, s.const_data_ptr(), int64_t(count));
  return {dx, dnorm_weight, dnorm_bias, dweights, dbiases, das, dbs};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(longspan, CPU, m) {
  m.impl("lora_linear_fwd", TORCH_BOX(&lora_linear_fwd<Cpu>));
  m.impl("lora_linear_bwd", TORCH_BOX(&lora_linear_bwd<Cpu>));
}

#ifdef LONGSPAN_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(longspan, CUDA, m) {
  m.impl("lora_linear_fwd", TORCH_BOX(&lora_linear_fwd<Cuda>));
  m.impl("lora_linear_bwd", TORCH_BOX(&lora_linear_bwd<Cuda>));
}
#endif

}  // namespace longspan::ops
