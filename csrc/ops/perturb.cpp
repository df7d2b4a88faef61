// torch ops longspan::perturb_ and es_update_: check, launch.
#include "kernels/perturb/perturb.h"

#include <string>

#include "ops/cuda.h"
#include "ops/tensor.h"

namespace longspan::ops {
namespace {

using Tensors = std::vector<Tensor>;
using Integers = std::vector<int64_t>;

/// Where an op runs.
struct Cpu {
  using Context = TorchContext;
  template <class... Arguments>
  static void perturb(const Arguments&... arguments) {
    kernels::perturb_cpu(arguments...);
  }
  template <class... Arguments>
  static void es_update(const Arguments&... arguments) {
    kernels::es_update_cpu(arguments...);
  }
};

#ifdef LONGSPAN_WITH_CUDA
struct Cuda {
  using Context = TorchCudaContext;
  template <class... Arguments>
  static void perturb(const Arguments&... arguments) {
    kernels::perturb_cuda(arguments...);
  }
  template <class... Arguments>
  static void es_update(const Arguments&... arguments) {
    kernels::es_update_cuda(arguments...);
  }
};
#endif

template <class T>
const T* vector_data(const Tensor& x, ScalarType type, int64_t length, const char* name) {
  STD_TORCH_CHECK(x.dim() == 1 && x.size(0) == length && x.is_contiguous() && x.scalar_type() == type,
                  "longspan::perturb: ", name, " must be contiguous, of its type and have length ", length);
  return static_cast<const T*>(x.const_data_ptr());
}

kernels::NoiseSpec noise_of(const Tensor& seeds, const Tensor& steps, int64_t members, int64_t stream,
                            const std::string& distribution) {
  STD_TORCH_CHECK(distribution == "gaussian" || distribution == "rademacher",
                  "longspan::perturb: distribution must be gaussian or rademacher");
  STD_TORCH_CHECK(stream >= 0 && stream <= 0xFFFFFFFF, "longspan::perturb: stream must have 32 bits");
  return {distribution == "gaussian" ? kernels::Distribution::kGaussian : kernels::Distribution::kRademacher,
          uint32_t(stream), vector_data<int64_t>(seeds, ScalarType::Long, members, "seeds"),
          vector_data<int64_t>(steps, ScalarType::Long, members, "steps"), members};
}

/// The tensors of a call; an empty list of sources means the targets.
std::vector<kernels::PerturbTensor> tensors_of(const Tensors& targets, const Tensors& sources, const Tensors& copies,
                                               const Integers& tensor_ids, const Integers& offsets) {
  const size_t count = targets.size();
  STD_TORCH_CHECK((sources.empty() || sources.size() == count) && (copies.empty() || copies.size() == count) &&
                      tensor_ids.size() == count && offsets.size() == count,
                  "longspan::perturb: lists differ in length");
  std::vector<kernels::PerturbTensor> out;
  for (size_t i = 0; i < count; ++i) {
    const Tensor &target = targets[i], &source = sources.empty() ? target : sources[i];
    const int64_t size = target.numel();
    STD_TORCH_CHECK(target.is_contiguous() && source.is_contiguous() && source.numel() == size &&
                        (copies.empty() || (copies[i].is_contiguous() && copies[i].numel() == size)),
                    "longspan::perturb: tensors must be contiguous and of their target's size");
    STD_TORCH_CHECK(tensor_ids[i] >= 0 && tensor_ids[i] <= 0xFFFFFFFF && offsets[i] >= 0,
                    "longspan::perturb: tensor_ids must have 32 bits, offsets not be negative");
    kernels::PerturbTensor t{};
    t.source = source.const_data_ptr(), t.source_dtype = dtype_of(source);
    t.target = target.mutable_data_ptr(), t.target_dtype = dtype_of(target);
    if (!copies.empty()) t.copy = copies[i].mutable_data_ptr(), t.copy_dtype = dtype_of(copies[i]);
    t.size = size, t.offset = offsets[i], t.tensor_id = uint32_t(tensor_ids[i]);
    out.push_back(t);
  }
  return out;
}

template <class Device>
void perturb_(Tensors targets, Tensors sources, const Tensor& scale, const Tensor& seed, const Tensor& step,
              Integers tensor_ids, Integers offsets, int64_t stream, StringHandle distribution_name) {
  const std::string distribution = taken(distribution_name);
  const auto tensors = tensors_of(targets, sources, {}, tensor_ids, offsets);
  const kernels::NoiseSpec noise = noise_of(seed, step, 1, stream, distribution);
  typename Device::Context context(scale);
  Device::perturb(noise, vector_data<float>(scale, ScalarType::Float, 1, "scale"), tensors, context.context());
}

template <class Device>
void es_update_(Tensors targets, Tensors copies, const Tensor& coefficients, const Tensor& alpha,
                std::optional<Tensor> decay, const Tensor& seeds, const Tensor& steps, Integers tensor_ids, Integers offsets,
                int64_t stream, StringHandle distribution_name) {
  const std::string distribution = taken(distribution_name);
  const auto tensors = tensors_of(targets, {}, copies, tensor_ids, offsets);
  const int64_t members = coefficients.numel(), count = int64_t(targets.size());
  const kernels::NoiseSpec noise = noise_of(seeds, steps, members, stream, distribution);
  const kernels::EsWeights weights{vector_data<float>(coefficients, ScalarType::Float, members, "coefficients"),
                                   vector_data<float>(alpha, ScalarType::Float, 1, "alpha"),
                                   decay ? vector_data<float>(*decay, ScalarType::Float, count, "decay") : nullptr};
  typename Device::Context context(coefficients);
  Device::es_update(noise, weights, tensors, context.context());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(longspan, CPU, m) {
  m.impl("perturb_", TORCH_BOX(&perturb_<Cpu>));
  m.impl("es_update_", TORCH_BOX(&es_update_<Cpu>));
}

#ifdef LONGSPAN_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(longspan, CUDA, m) {
  m.impl("perturb_", TORCH_BOX(&perturb_<Cuda>));
  m.impl("es_update_", TORCH_BOX(&es_update_<Cuda>));
}
#endif

}  // namespace longspan::ops
