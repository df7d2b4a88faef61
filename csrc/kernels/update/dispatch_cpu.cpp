// Checks dtypes and picks the instruction set's variant of the CPU kernels.
#include <stdexcept>
#include <string>

#include "common/per_isa.h"
#include "update/update.h"

namespace longspan::kernels {

LONGSPAN_DECLARE_PER_ISA(void masked_adamw(const UpdateSpec&, const std::vector<UpdateTensor>&, const Context&))
LONGSPAN_DECLARE_PER_ISA(void masked_sgd(const UpdateSpec&, const std::vector<UpdateTensor>&, const Context&))

namespace {

void check_cpu(const std::vector<UpdateTensor>& tensors, const std::string& name) {
  for (const UpdateTensor& x : tensors) {
    for (DType dtype : {x.param_dtype, x.grad_dtype})
      if (dtype != DType::kFloat32 && dtype != DType::kBFloat16)
        throw std::invalid_argument(name + " on the CPU takes float32 and bfloat16");
    if (x.copy && x.copy_dtype != DType::kBFloat16)
      throw std::invalid_argument(name + " on the CPU writes copies of bfloat16");
  }
}

}  // namespace

void masked_adamw_cpu(const UpdateSpec& spec, const std::vector<UpdateTensor>& tensors, const Context& context) {
  check_cpu(tensors, "masked_adamw");
  LONGSPAN_CALL_PER_ISA(context.isa, masked_adamw, spec, tensors, context);
}

void masked_sgd_cpu(const UpdateSpec& spec, const std::vector<UpdateTensor>& tensors, const Context& context) {
  check_cpu(tensors, "masked_sgd");
  LONGSPAN_CALL_PER_ISA(context.isa, masked_sgd, spec, tensors, context);
}

}  // namespace longspan::kernels
