// Picks the instruction set's variant of the CPU kernels.
#include <stdexcept>

#include "common/per_isa.h"
#include "glu/glu.h"

namespace longspan::kernels {

LONGSPAN_DECLARE_PER_ISA(void glu_fwd(const GluTensors&, const Context&))
LONGSPAN_DECLARE_PER_ISA(void glu_bwd(const GluGradients&, const Context&))

namespace {
void refuse_float16(const View<2>& x) {
  if (x.dtype == DType::kFloat16)
    throw std::invalid_argument("activations on the CPU have no float16; use bfloat16 or float32");
}
}  // namespace

void glu_fwd_cpu(const GluTensors& io, const Context& context) {
  refuse_float16(io.gate);
  LONGSPAN_CALL_PER_ISA(context.isa, glu_fwd, io, context);
}

void glu_bwd_cpu(const GluGradients& io, const Context& context) {
  refuse_float16(io.gate);
  LONGSPAN_CALL_PER_ISA(context.isa, glu_bwd, io, context);
}

}  // namespace longspan::kernels
