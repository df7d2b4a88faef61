// Scratch, argument checks and the choice of the instruction set for common/gemm.h.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "common/gemm.h"
#include "common/per_isa.h"

namespace longspan::kernels {

LONGSPAN_DECLARE_PER_ISA(void gemm(const GemmArgs&, const GemmTail&, const Parallel&, void* scratch))

namespace {

void check(const GemmArgs& args) {
  const bool wide = args.dtype_a == DType::kFloat64;
  if (wide != (args.dtype_b == DType::kFloat64) || wide != (args.dtype_c == DType::kFloat64))
    throw std::invalid_argument("gemm: float64 does not mix with other dtypes");
}

/// Enough for two packed blocks of B, and of A where it is packed, under every instruction set, and for a float block of C
/// when C is bfloat16.
int64_t scratch_bytes(const GemmArgs& args, int64_t rank = 0) {
  constexpr int64_t kWidest = 64;  // rows and columns are packed in multiples of less than this
  const int64_t m = std::min(args.m, kGemmRows) + kWidest, n = std::min(args.n, kGemmColumns) + kWidest;
  const int64_t k = std::min(args.k, kGemmDepth);
  const int64_t c = args.dtype_c == DType::kBFloat16 ? m * n : 0;
  const int64_t packed = gemm_reads_a_in_place(args) ? n : m + n;
  return (2 * (packed * k + n * rank) + c) * element_size(statistics_dtype(args.dtype_a)) +
         kGemmCounters * int64_t(sizeof(int64_t)) + 8 * 64;
}

/// As scratch_bytes for any m, n and k: products of many shapes then share one piece of scratch.
int64_t largest_scratch_bytes(GemmArgs args) {
  args.transpose_a = true;  // packed
  args.m = kGemmRows, args.n = kGemmColumns, args.k = kGemmDepth;
  return scratch_bytes(args);
}

void dispatch(const GemmArgs& args, const GemmTail& tail, const Context& context, void* scratch) {
  LONGSPAN_CALL_PER_ISA(context.isa, gemm, args, tail, context.parallel, scratch);
}

}  // namespace

void gemm_cpu(const GemmArgs& args, const Context& context, const GemmTail& tail) {
  check(args);
  if (tail.rank < 0 || tail.rank > kGemmDepth)
    throw std::invalid_argument("gemm: the tail's rank is " + std::to_string(tail.rank) + "; it must be 0 to " +
                                std::to_string(kGemmDepth));
  if (args.m <= 0 || args.n <= 0) return;
  dispatch(args, tail, context, context.workspace.get(context.workspace.self, scratch_bytes(args, tail.rank)));
}

void OwnGemm::run(const GemmArgs& args) {
  check(args);
  if (args.m <= 0 || args.n <= 0) return;
  if (scratch_bytes(args) > bytes_) {
    bytes_ = largest_scratch_bytes(args);
    scratch_ = context_.workspace.get(context_.workspace.self, bytes_);
  }
  dispatch(args, {}, context_, scratch_);
}

Gemm OwnGemm::gemm() {
  return {this, [](void* self, const GemmArgs& args) { static_cast<OwnGemm*>(self)->run(args); }};
}

}  // namespace longspan::kernels
