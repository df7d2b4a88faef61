// Checks groups and picks the instruction set's variant of the CPU kernels.
#include <stdexcept>
#include <string>

#include "common/per_isa.h"
#include "magnitude/check.h"

namespace longspan::kernels {

LONGSPAN_DECLARE_PER_ISA(void magnitude_histogram(const std::vector<MagnitudeTensor>&, int64_t, const HistogramOutput&,
                                                  const Context&))
LONGSPAN_DECLARE_PER_ISA(void kth_magnitude(const std::vector<MagnitudeTensor>&, int64_t, const KthOutput&, const Context&))
LONGSPAN_DECLARE_PER_ISA(void squared_norms(const std::vector<MagnitudeTensor>&, int64_t, double*, const Context&))

void magnitude_histogram_cpu(const std::vector<MagnitudeTensor>& tensors, int64_t groups, const HistogramOutput& out,
                             const Context& context) {
  check_groups(tensors, groups);
  if (out.bins)
    for (int64_t g = 0; g < groups; ++g)
      if (out.bins[g] < 0 || out.bins[g] >= kUpperBins)
        throw std::invalid_argument("magnitude_histogram: bin " + std::to_string(out.bins[g]) + " of group " +
                                    std::to_string(g) + " is out of range; allowed: 0 to " + std::to_string(kUpperBins - 1));
  LONGSPAN_CALL_PER_ISA(context.isa, magnitude_histogram, tensors, groups, out, context);
}

void kth_magnitude_cpu(const std::vector<MagnitudeTensor>& tensors, int64_t groups, const KthOutput& out,
                       const Context& context) {
  const std::vector<int64_t> sizes = check_groups(tensors, groups);
  for (int64_t g = 0; g < groups; ++g)
    if (out.wanted[g] < 1 || out.wanted[g] > sizes[g])
      throw std::invalid_argument("kth_magnitude: the " + std::to_string(out.wanted[g]) + "th largest of group " +
                                  std::to_string(g) + " is asked for, which has " + std::to_string(sizes[g]) + " elements");
  LONGSPAN_CALL_PER_ISA(context.isa, kth_magnitude, tensors, groups, out, context);
}

void squared_norms_cpu(const std::vector<MagnitudeTensor>& tensors, int64_t groups, double* squares,
                       const Context& context) {
  check_groups(tensors, groups);
  LONGSPAN_CALL_PER_ISA(context.isa, squared_norms, tensors, groups, squares, context);
}

}  // namespace longspan::kernels
