// Picks the instruction set's variant of the CPU kernels.
#include <stdexcept>
#include <string>

#include "common/per_isa.h"
#include "topl/topl.h"

namespace longspan::kernels {

LONGSPAN_DECLARE_PER_ISA(void topl_threshold(const ToplSpec&, const ToplTensors&, const ToplThreshold&, const Context&))
LONGSPAN_DECLARE_PER_ISA(void topl_indices(const ToplSpec&, const ToplTensors&, int64_t, int32_t*, const Context&))
LONGSPAN_DECLARE_PER_ISA(void adc_table(const ToplSpec&, const ToplTensors&, uint8_t*, const Context&))

namespace {
void refuse_float16(const char* name, const ToplTensors& io) {
  if (io.q.data && io.q.dtype == DType::kFloat16)
    throw std::invalid_argument(std::string(name) + " on the CPU has no float16; use bfloat16 or float32");
}
}  // namespace

void topl_threshold_cpu(const ToplSpec& spec, const ToplTensors& io, const ToplThreshold& out, const Context& context) {
  refuse_float16("topl_threshold", io);
  LONGSPAN_CALL_PER_ISA(context.isa, topl_threshold, spec, io, out, context);
}

void topl_indices_cpu(const ToplSpec& spec, const ToplTensors& io, int64_t slots, int32_t* indices, const Context& context) {
  refuse_float16("topl_indices", io);
  LONGSPAN_CALL_PER_ISA(context.isa, topl_indices, spec, io, slots, indices, context);
}

void adc_table_cpu(const ToplSpec& spec, const ToplTensors& io, uint8_t* tables, const Context& context) {
  refuse_float16("adc_table", io);
  LONGSPAN_CALL_PER_ISA(context.isa, adc_table, spec, io, tables, context);
}

}  // namespace longspan::kernels
