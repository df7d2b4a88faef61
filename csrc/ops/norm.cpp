// torch ops longspan::norm_fwd and norm_bwd: check, allocate, launch.
#include "kernels/norm/norm.h"

#include <tuple>

#include "ops/cuda.h"
#include "ops/tensor.h"

namespace longspan::ops {
namespace {

/// The data of a contiguous vector of weight's dtype, or null for none.
const void* vector_data(const std::optional<Tensor>& x, const Tensor& rows, const char* name) {
  if (!x) return nullptr;
  STD_TORCH_CHECK(x->dim() == 1 && x->size(0) == rows.size(1) && x->is_contiguous(), "longspan::norm: ", name,
                  " must be contiguous and have length ", rows.size(1));
  STD_TORCH_CHECK(x->scalar_type() == rows.scalar_type() || x->scalar_type() == statistics_type(rows),
                  "longspan::norm: ", name, " has the wrong dtype");
  return x->const_data_ptr();
}

kernels::DType weight_dtype(const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, const Tensor& rows) {
  STD_TORCH_CHECK(!weight || !bias || weight->scalar_type() == bias->scalar_type(),
                  "longspan::norm: weight and bias differ in dtype");
  return dtype_of(weight ? *weight : bias ? *bias : rows);
}

void check_like(const Tensor& x, const Tensor& rows, const char* name) {
  STD_TORCH_CHECK(
      x.dim() == 2 && x.size(0) == rows.size(0) && x.size(1) == rows.size(1) && x.scalar_type() == rows.scalar_type(),
      "longspan::norm: ", name, " does not fit x");
}

/// Where an op runs.
struct Cpu {
  static void fwd(const kernels::NormSpec& spec, const kernels::NormTensors& io, const Tensor& like) {
    TorchContext torch_context(like);
    kernels::norm_fwd_cpu(spec, io, torch_context.context());
  }
  static void bwd(const kernels::NormSpec& spec, const kernels::NormGradients& io, const Tensor& like) {
    TorchContext torch_context(like);
    kernels::norm_bwd_cpu(spec, io, torch_context.context());
  }
};

#ifdef LONGSPAN_WITH_CUDA
struct Cuda {
  static void fwd(const kernels::NormSpec& spec, const kernels::NormTensors& io, const Tensor& like) {
    TorchCudaContext torch_context(like);
    kernels::norm_fwd_cuda(spec, io, torch_context.context());
  }
  static void bwd(const kernels::NormSpec& spec, const kernels::NormGradients& io, const Tensor& like) {
    TorchCudaContext torch_context(like);
    kernels::norm_bwd_cuda(spec, io, torch_context.context());
  }
};
#endif

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> norm_fwd(const Tensor& x, std::optional<Tensor> residual,
                                                    std::optional<Tensor> weight, std::optional<Tensor> bias, bool centered,
                                                    double eps, double weight_offset) {
  const auto rows = view_of<2>(x);
  if (residual) check_like(*residual, x, "residual");
  const auto new_rows = [&](bool wanted) {
    return wanted ? torch::stable::new_empty(x, {x.size(0), x.size(1)}) : torch::stable::new_empty(x, {0});
  };
  const auto statistics = [&](bool wanted) {
    return torch::stable::new_empty(x, {wanted ? x.size(0) : 0}, statistics_type(x));
  };
  Tensor y = new_rows(true), sum = new_rows(residual.has_value()), rstd = statistics(true), mean = statistics(centered);
  kernels::NormTensors io{rows,
                          {},
                          vector_data(weight, x, "weight"),
                          vector_data(bias, x, "bias"),
                          weight_dtype(weight, bias, x),
                          {},
                          view_of<2>(y),
                          rstd.mutable_data_ptr(),
                          centered ? mean.mutable_data_ptr() : nullptr};
  if (residual) io.residual = view_of<2>(*residual), io.sum = view_of<2>(sum);
  Device::fwd({centered, eps, weight_offset}, io, x);
  return {y, sum, rstd, mean};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor> norm_bwd(const Tensor& dy, std::optional<Tensor> dsum, const Tensor& x,
                                            std::optional<Tensor> weight, std::optional<Tensor> bias, const Tensor& rstd,
                                            const Tensor& mean, bool centered, double weight_offset, bool need_dweight,
                                            bool need_dbias) {
  check_like(dy, x, "dy");
  if (dsum) check_like(*dsum, x, "dsum");
  STD_TORCH_CHECK((!need_dweight || weight) && (!need_dbias || bias), "longspan::norm: a gradient of nothing is wanted");
  STD_TORCH_CHECK(rstd.dim() == 1 && rstd.size(0) == x.size(0) && rstd.is_contiguous() &&
                      rstd.scalar_type() == statistics_type(x) && (!centered || mean.size(0) == x.size(0)),
                  "longspan::norm: rstd or mean does not fit x");
  Tensor dx = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  const auto vector = [&](bool needed, const std::optional<Tensor>& like) {
    return torch::stable::new_empty(needed ? *like : x, {needed ? x.size(1) : 0});
  };
  Tensor dweight = vector(need_dweight, weight), dbias = vector(need_dbias, bias);
  Device::bwd(
      {centered, 0.0, weight_offset},
      {view_of<2>(dy), dsum ? view_of<2>(*dsum) : kernels::View<2>{}, view_of<2>(x), vector_data(weight, x, "weight"),
       weight_dtype(weight, bias, x), rstd.const_data_ptr(), centered ? mean.const_data_ptr() : nullptr, view_of<2>(dx),
       need_dweight ? dweight.mutable_data_ptr() : nullptr, need_dbias ? dbias.mutable_data_ptr() : nullptr},
      x);
  return {dx, dweight, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(longspan, CPU, m) {
  m.impl("norm_fwd", TORCH_BOX(&norm_fwd<Cpu>));
  m.impl("norm_bwd", TORCH_BOX(&norm_bwd<Cpu>));
}

#ifdef LONGSPAN_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(longspan, CUDA, m) {
  m.impl("norm_fwd", TORCH_BOX(&norm_fwd<Cuda>));
  m.impl("norm_bwd", TORCH_BOX(&norm_bwd<Cuda>));
}
#endif

}  // namespace longspan::ops
