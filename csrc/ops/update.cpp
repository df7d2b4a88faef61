// torch ops longspan::masked_adamw_ and masked_sgd_: check, collect, launch.
#include "kernels/update/update.h"

#include <cstdint>
#include <string>

#include "ops/cuda.h"
#include "ops/tensor.h"

namespace longspan::ops {
namespace {

using Tensors = std::vector<Tensor>;
using Numbers = std::vector<int64_t>;
using MaybeTensor = std::optional<Tensor>;

/// The step and where it runs.
template <class Step>
struct Cpu {
  static constexpr bool second = Step::second;
  static constexpr int64_t scalars = Step::scalars;
  static void run(const kernels::UpdateSpec& spec, const std::vector<kernels::UpdateTensor>& tensors, const Tensor& like) {
    TorchContext torch_context(like);
    Step::cpu(spec, tensors, torch_context.context());
  }
};

#ifdef LONGSPAN_WITH_CUDA
template <class Step>
struct Cuda {
  static constexpr bool second = Step::second;
  static constexpr int64_t scalars = Step::scalars;
  static void run(const kernels::UpdateSpec& spec, const std::vector<kernels::UpdateTensor>& tensors, const Tensor& like) {
    TorchCudaContext torch_context(like);
    Step::cuda(spec, tensors, torch_context.context());
  }
};
#endif

struct AdamW {
  static constexpr bool second = true;
  static constexpr int64_t scalars = 8;
  static constexpr auto cpu = &kernels::masked_adamw_cpu;
#ifdef LONGSPAN_WITH_CUDA
  static constexpr auto cuda = &kernels::masked_adamw_cuda;
#endif
};

struct Sgd {
  static constexpr bool second = false;
  static constexpr int64_t scalars = 3;
  static constexpr auto cpu = &kernels::masked_sgd_cpu;
#ifdef LONGSPAN_WITH_CUDA
  static constexpr auto cuda = &kernels::masked_sgd_cuda;
#endif
};

kernels::MaskMode mode_of(const std::string& mode) {
  STD_TORCH_CHECK(mode == "grad" || mode == "update" || mode == "freeze",
                  "longspan: the mode of an update must be grad, update or freeze");
  return mode == "grad"     ? kernels::MaskMode::kGradient
         : mode == "update" ? kernels::MaskMode::kUpdate
                            : kernels::MaskMode::kFreeze;
}

/// The elements of a contiguous tensor beside `like` with as many; null for one of shape [0], which stands for none.
void* elements(const Tensor& x, const Tensor& like, const char* name) {
  if (x.numel() == 0 && like.numel() != 0) return nullptr;
  STD_TORCH_CHECK(x.numel() == like.numel() && x.is_contiguous() && x.device() == like.device(), "longspan: ", name,
                  " must be contiguous, beside the parameters and as long as them");
  return const_cast<void*>(x.const_data_ptr());
}

float* moments(const Tensor& x, const Tensor& like, const char* name) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float, "longspan: ", name, " must be float32");
  return static_cast<float*>(elements(x, like, name));
}

const uint8_t* mask_of(const Tensor& mask, const Tensor& like, kernels::MaskKind kind, int64_t columns) {
  using kernels::MaskKind;
  const int64_t n = like.numel();
  const int64_t length = kind == MaskKind::kBits      ? (n + 7) / 8
                         : kind == MaskKind::kRows    ? n / std::max<int64_t>(1, columns)
                         : kind == MaskKind::kColumns ? columns
                                                      : 0;
  if (!length) return nullptr;
  STD_TORCH_CHECK(mask.scalar_type() == ScalarType::Byte && mask.dim() == 1 && mask.size(0) == length &&
                      mask.is_contiguous() && mask.device() == like.device(),
                  "longspan: a mask must be contiguous uint8, beside the parameters, of length ", length);
  return static_cast<const uint8_t*>(mask.const_data_ptr());
}

template <class Type>
const Type* vector_of(const MaybeTensor& x, const Tensor& like, ScalarType type, int64_t least, const char* name) {
  if (!x) return nullptr;
  STD_TORCH_CHECK(
      x->dim() == 1 && x->size(0) >= least && x->scalar_type() == type && x->is_contiguous() && x->device() == like.device(),
      "longspan: ", name, " has a wrong shape, dtype or device");
  return static_cast<const Type*>(x->const_data_ptr());
}

template <class Device>
void masked_step(const Tensors& params, const Tensors& grads, const Tensors& firsts, const Tensors& seconds,
                 const Tensors& copies, const Numbers& kinds, const Tensors& masks, const Numbers& groups,
                 const Numbers& numbers, const MaybeTensor& bits, const MaybeTensor& cut, const Tensor& factors,
                 const Tensor& scalars, StringHandle mode_name, bool zero_grad, bool stochastic, int64_t seed) {
  const kernels::MaskMode mode = mode_of(taken(mode_name));
  const size_t count = params.size();
  STD_TORCH_CHECK(count && grads.size() == count && firsts.size() == count && seconds.size() == count &&
                      copies.size() == count && kinds.size() == count && masks.size() == count && groups.size() == count &&
                      numbers.size() == count,
                  "longspan: the lists of an update are empty or differ in length");
  const Tensor& like = params[0];
  std::vector<kernels::UpdateTensor> tensors;
  int64_t most_groups = 0;
  bool thresholds = false;
  for (size_t i = 0; i < count; ++i) {
    const Tensor& p = params[i];
    STD_TORCH_CHECK(p.is_contiguous() && p.device() == like.device() && kinds[i] >= 0 && kinds[i] <= 5 && groups[i] >= 0 &&
                        groups[i] <= INT32_MAX,
                    "longspan: parameters must be contiguous, on one device, with a kind of mask and a group");
    const auto kind = kernels::MaskKind(kinds[i]);
    const int64_t columns = p.dim() ? p.size(p.dim() - 1) : 1;
    if (kind == kernels::MaskKind::kThreshold) thresholds = true, most_groups = std::max(most_groups, groups[i] + 1);
    tensors.push_back({elements(p, p, "params"), dtype_of(p), elements(grads[i], p, "grads"), dtype_of(grads[i]),
                       moments(firsts[i], p, "moments"), Device::second ? moments(seconds[i], p, "moments") : nullptr,
                       elements(copies[i], p, "copies"), dtype_of(copies[i]), p.numel(), columns, kind,
                       mask_of(masks[i], p, kind, columns), int32_t(groups[i]), numbers[i]});
    const auto& x = tensors.back();
    STD_TORCH_CHECK(p.numel() == 0 || (x.grad && (!Device::second || (x.first && x.second))),
                    "longspan: a gradient or a moment is missing");
  }
  STD_TORCH_CHECK(!thresholds || (bits && cut), "longspan: threshold masks need bits and cut");
  const kernels::UpdateSpec spec{mode,
                                 vector_of<int32_t>(bits, like, ScalarType::Int, most_groups, "bits"),
                                 vector_of<int64_t>(cut, like, ScalarType::Long, most_groups, "cut"),
                                 vector_of<float>(factors, like, ScalarType::Float, int64_t(count), "factors"),
                                 vector_of<float>(scalars, like, ScalarType::Float, Device::scalars, "scalars"),
                                 zero_grad,
                                 stochastic,
                                 uint64_t(seed)};
  Device::run(spec, tensors, like);
}

template <class Device>
void sgd_step(const Tensors& params, const Tensors& grads, const Tensors& buffers, const Tensors& copies,
              const Numbers& kinds, const Tensors& masks, const Numbers& groups, const Numbers& numbers,
              const MaybeTensor& bits, const MaybeTensor& cut, const Tensor& factors, const Tensor& scalars,
              StringHandle mode, bool zero_grad, bool stochastic, int64_t seed) {
  masked_step<Device>(params, grads, buffers, buffers, copies, kinds, masks, groups, numbers, bits, cut, factors, scalars,
                      mode, zero_grad, stochastic, seed);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(longspan, CPU, m) {
  m.impl("masked_adamw_", TORCH_BOX(&masked_step<Cpu<AdamW>>));
  m.impl("masked_sgd_", TORCH_BOX(&sgd_step<Cpu<Sgd>>));
}

#ifdef LONGSPAN_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(longspan, CUDA, m) {
  m.impl("masked_adamw_", TORCH_BOX(&masked_step<Cuda<AdamW>>));
  m.impl("masked_sgd_", TORCH_BOX(&sgd_step<Cuda<Sgd>>));
}
#endif

}  // namespace longspan::ops
