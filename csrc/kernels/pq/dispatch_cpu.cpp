// Checks codes and picks the instruction set's variant of the CPU kernels.
#include <stdexcept>
#include <string>

#include "common/per_isa.h"
#include "pq/pq.h"

namespace longspan::kernels {

LONGSPAN_DECLARE_PER_ISA(void pq_encode(const Codebook&, int, const PqTensors&, const Context&))
LONGSPAN_DECLARE_PER_ISA(void pq_loss(const Codebook&, int, double, double, const PqLossTensors&, const Context&))
LONGSPAN_DECLARE_PER_ISA(void pq_stats(const Codebook&, const PqStatistics&, const Context&))

namespace {

void refuse_float16(const char* name, const View<4>& z) {
  if (z.dtype == DType::kFloat16)
    throw std::invalid_argument(std::string(name) + " on the CPU has no float16; use bfloat16 or float32");
}

void check_codes(const char* name, const Codebook& codebook, const View<4>& z, const int32_t* codes) {
  const int64_t vectors = z.size[0] * z.size[1] * z.size[2], W = code_words(codebook.subspaces, codebook.codewords);
  const int bits = code_bits(codebook.codewords);
  for (int64_t i = 0; i < vectors; ++i)
    for (int m = 0; m < codebook.subspaces; ++m)
      if (code_at(codes + i * W, m, bits) >= codebook.codewords)
        throw std::invalid_argument(std::string(name) + ": vector " + std::to_string(i) + " has code " +
                                    std::to_string(code_at(codes + i * W, m, bits)) + " in subspace " + std::to_string(m) +
                                    "; the codebook has " + std::to_string(codebook.codewords) + " codewords");
}

}  // namespace

void pq_encode_cpu(const Codebook& codebook, int power, const PqTensors& io, const Context& context) {
  refuse_float16("pq_encode", io.z);
  LONGSPAN_CALL_PER_ISA(context.isa, pq_encode, codebook, power, io, context);
}

void pq_loss_cpu(const Codebook& codebook, int power, double eps, double factor, const PqLossTensors& io,
                 const Context& context) {
  refuse_float16("pq_loss", io.z);
  check_codes("pq_loss", codebook, io.z, io.codes);
  LONGSPAN_CALL_PER_ISA(context.isa, pq_loss, codebook, power, eps, factor, io, context);
}

void pq_stats_cpu(const Codebook& codebook, const PqStatistics& io, const Context& context) {
  refuse_float16("pq_stats", io.z);
  check_codes("pq_stats", codebook, io.z, io.codes);
  LONGSPAN_CALL_PER_ISA(context.isa, pq_stats, codebook, io, context);
}

}  // namespace longspan::kernels
