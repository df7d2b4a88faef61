// Picks the instruction set's variant of the CPU kernels.
#include <stdexcept>

#include "attention/attention.h"
#include "common/per_isa.h"

namespace longspan::kernels {

LONGSPAN_DECLARE_PER_ISA(void attention_fwd(const AttentionSpec&, const AttentionTensors&, const Context&))
LONGSPAN_DECLARE_PER_ISA(void attention_bwd(const AttentionSpec&, const AttentionTensors&, const AttentionGradients&,
                                            const Context&))

namespace {
void refuse_float16(const AttentionTensors& io) {
  if (io.q.dtype == DType::kFloat16)
    throw std::invalid_argument("attention on the CPU has no float16; use bfloat16 or float32");
}
}  // namespace

void attention_fwd_cpu(const AttentionSpec& spec, const AttentionTensors& io, const Context& context) {
  refuse_float16(io);
  LONGSPAN_CALL_PER_ISA(context.isa, attention_fwd, spec, io, context);
}

void attention_bwd_cpu(const AttentionSpec& spec, const AttentionTensors& io, const AttentionGradients& grads,
                       const Context& context) {
  refuse_float16(io);
  LONGSPAN_CALL_PER_ISA(context.isa, attention_bwd, spec, io, grads, context);
}

}  // namespace longspan::kernels
