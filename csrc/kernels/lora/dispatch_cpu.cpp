// Picks the instruction set's variant of the thin products.
#include "common/per_isa.h"
#include "lora/low_rank.h"

namespace longspan::kernels {

LONGSPAN_DECLARE_PER_ISA(void low_rank_pass(const LowRankPass&, const Context&))
LONGSPAN_DECLARE_PER_ISA(void low_rank_update(const LowRankUpdate&, const Context&))
LONGSPAN_DECLARE_PER_ISA(void low_rank_result(const LowRankResult&, const Context&))

void low_rank_pass_cpu(const LowRankPass& pass, const Context& context) {
  LONGSPAN_CALL_PER_ISA(context.isa, low_rank_pass, pass, context);
}

void low_rank_update_cpu(const LowRankUpdate& update, const Context& context) {
  LONGSPAN_CALL_PER_ISA(context.isa, low_rank_update, update, context);
}

void low_rank_result_cpu(const LowRankResult& result, const Context& context) {
  LONGSPAN_CALL_PER_ISA(context.isa, low_rank_result, result, context);
}

}  // namespace longspan::kernels
