// Checks blocks and picks the instruction set's variant of the CPU kernel.
#include <stdexcept>
#include <string>

#include "common/per_isa.h"
#include "select/select.h"

namespace longspan::kernels {

LONGSPAN_DECLARE_PER_ISA(void block_score(const BlockScoreSpec&, const BlockScoreTensors&, const Context&))

void block_score_cpu(const BlockScoreSpec& spec, const BlockScoreTensors& io, const Context& context) {
  if (io.q.dtype == DType::kFloat16)
    throw std::invalid_argument("block_score on the CPU has no float16; use bfloat16 or float32");
  const int64_t rows = io.q.size[0], S = io.scores.size[0], N = io.scores.size[1];
  for (int64_t s = 0; s < S; ++s) {
    const int64_t blocks = int64_t(io.segments[s + 1]) - io.segments[s];
    if (blocks < 0 || blocks > N)
      throw std::invalid_argument("block_score: segment " + std::to_string(s) + " has " + std::to_string(blocks) +
                                  " blocks; 0 to " + std::to_string(N) + " are allowed");
    for (int64_t n = io.segments[s]; n < io.segments[s + 1]; ++n)
      if (io.counts[n] < 1 || io.counts[n] > kMaxBlock || io.starts[n] < 0 || io.starts[n] + int64_t(io.counts[n]) > rows)
        throw std::invalid_argument("block_score: block " + std::to_string(n) + " has " + std::to_string(io.counts[n]) +
                                    " rows from " + std::to_string(io.starts[n]) + "; it must have 1 to " +
                                    std::to_string(kMaxBlock) + " of " + std::to_string(rows));
  }
  LONGSPAN_CALL_PER_ISA(context.isa, block_score, spec, io, context);
}

}  // namespace longspan::kernels
