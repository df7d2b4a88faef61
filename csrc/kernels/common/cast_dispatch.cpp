// Picks the instruction set's variant of common/cast.h.
#include "common/cast.h"
#include "common/per_isa.h"

namespace longspan::kernels {

LONGSPAN_DECLARE_PER_ISA(void cast(const View<2>&, double, const View<2>&, const Context&))

void cast_cpu(const View<2>& from, double scale, const View<2>& to, const Context& context) {
  LONGSPAN_CALL_PER_ISA(context.isa, cast, from, scale, to, context);
}

}  // namespace longspan::kernels
