// Picks the instruction set's variant of the CPU kernels.
#include <stdexcept>

#include "common/per_isa.h"
#include "norm/norm.h"

namespace longspan::kernels {

LONGSPAN_DECLARE_PER_ISA(void norm_fwd(const NormSpec&, const NormTensors&, const Context&))
LONGSPAN_DECLARE_PER_ISA(void norm_bwd(const NormSpec&, const NormGradients&, const Context&))

namespace {
void refuse_float16(const View<2>& x) {
  if (x.dtype == DType::kFloat16) throw std::invalid_argument("norms on the CPU have no float16; use bfloat16 or float32");
}
}  // namespace

void norm_fwd_cpu(const NormSpec& spec, const NormTensors& io, const Context& context) {
  refuse_float16(io.x);
  LONGSPAN_CALL_PER_ISA(context.isa, norm_fwd, spec, io, context);
}

void norm_bwd_cpu(const NormSpec& spec, const NormGradients& io, const Context& context) {
  refuse_float16(io.x);
  LONGSPAN_CALL_PER_ISA(context.isa, norm_bwd, spec, io, context);
}

}  // namespace longspan::kernels
