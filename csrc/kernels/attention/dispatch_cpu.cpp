// Picks the instruction set's variant of the CPU kernels.
#include "attention/attention.h"
#include "common/per_isa.h"

namespace longspan::kernels {

LONGSPAN_DECLARE_PER_ISA(void attention_fwd(const AttentionSpec&, const AttentionTensors&, const Context&))
LONGSPAN_DECLARE_PER_ISA(void attention_bwd(const AttentionSpec&, const AttentionTensors&, const AttentionGradients&,
                                            const Context&))

void attention_fwd_cpu(const AttentionSpec& spec, const AttentionTensors& io, const Context& context) {
  LONGSPAN_CALL_PER_ISA(context.isa, attention_fwd, spec, io, context);
}

void attention_bwd_cpu(const AttentionSpec& spec, const AttentionTensors& io, const AttentionGradients& grads,
                       const Context& context) {
  LONGSPAN_CALL_PER_ISA(context.isa, attention_bwd, spec, io, grads, context);
}

}  // namespace longspan::kernels
