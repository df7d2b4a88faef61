// Checks dtypes and picks the instruction set's variant of the CPU kernel.
#include <stdexcept>

#include "common/per_isa.h"
#include "perturb/perturb.h"

namespace longspan::kernels {

LONGSPAN_DECLARE_PER_ISA(void es_update(const NoiseSpec&, const EsWeights&, const std::vector<PerturbTensor>&,
                                        const Context&))

void es_update_cpu(const NoiseSpec& noise, const EsWeights& weights, const std::vector<PerturbTensor>& tensors,
                   const Context& context) {
  const auto fits = [](const void* data, DType dtype) {
    return !data || dtype == DType::kFloat32 || dtype == DType::kBFloat16;
  };
  for (const PerturbTensor& t : tensors)
    if (!fits(t.source, t.source_dtype) || !fits(t.target, t.target_dtype) || !fits(t.copy, t.copy_dtype))
      throw std::invalid_argument("noise on the CPU is added to float32 and bfloat16 only");
  LONGSPAN_CALL_PER_ISA(context.isa, es_update, noise, weights, tensors, context);
}

void perturb_cpu(const NoiseSpec& noise, const float* scale, const std::vector<PerturbTensor>& tensors,
                 const Context& context) {
  es_update_cpu(noise, {scale, nullptr, nullptr}, tensors, context);
}

}  // namespace longspan::kernels
