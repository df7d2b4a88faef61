// Checks positions and picks the instruction set's variant of the CPU kernel.
#include <stdexcept>
#include <string>

#include "common/per_isa.h"
#include "rope/rope.h"

namespace longspan::kernels {

LONGSPAN_DECLARE_PER_ISA(void rope(const RopeSpec&, const RopeTensors&, const Context&))

void rope_cpu(const RopeSpec& spec, const RopeTensors& io, const Context& context) {
  if (io.x.dtype == DType::kFloat16) throw std::invalid_argument("rope on the CPU has no float16; use bfloat16 or float32");
  const int64_t P = io.cos.size[0];
  for (int64_t b = 0; b < (io.positions_batch ? io.x.size[0] : 1); ++b)
    for (int64_t t = 0; t < io.x.size[2]; ++t)
      if (const int64_t p = io.positions[b * io.positions_batch + t]; p < 0 || p >= P)
        throw std::invalid_argument("rope: position " + std::to_string(p) + " of token " + std::to_string(t) + " in row " +
                                    std::to_string(b) + " is out of range; the tables have rows 0 to " +
                                    std::to_string(P - 1));
  LONGSPAN_CALL_PER_ISA(context.isa, rope, spec, io, context);
}

}  // namespace longspan::kernels
