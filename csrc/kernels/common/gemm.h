#pragma once
#include "common/context.h"

namespace longspan::kernels {

/// A second pair of factors, added to the first product before it is rounded: op(A) op(B) + P op(Q). P is [M,R] and op(Q)
/// is [R,N], stored as B is (transposed or not); both in the type of the sums. R is small, at most kGemmDepth; 0 is none.
struct GemmTail {
  const void* p = nullptr;
  int64_t ldp = 0;
  const void* q = nullptr;
  int64_t ldq = 0;
  int64_t rank = 0;
};

/// The library's own matrix product, as GemmArgs in context.h defines it; any m, n and k, 0 included.
///
/// Blocked and packed (Goto and van de Geijn 2008, "Anatomy of high-performance matrix multiplication") around the
/// register blocks of block_gemm.h. Scratch: two packed blocks of each side, at most 2 (kGemmRows + kGemmColumns)
/// kGemmDepth elements, and a block of C when C is bfloat16. Every element of C is summed over k in an order that depends
/// on k alone, so the result does not depend on the worker count.
/// Rows of an A of the type of the sums are read where they are, without packing. The tail costs its arithmetic alone: it is
/// added to a block of C that is in registers' reach, as further steps of k (Hu et al. 2021 write W + B A; here W stays as
/// it is). Throws std::invalid_argument for a rank above kGemmDepth. `context.gemm` is not used.
void gemm_cpu(const GemmArgs& args, const Context& context, const GemmTail& tail = {});

/// Whether A is read in place: as stored by rows, in the type in which it is summed.
inline bool gemm_reads_a_in_place(const GemmArgs& args) {
  return !args.transpose_a && args.dtype_a == statistics_dtype(args.dtype_a);
}

/// Longest block of rows of C, columns of C and products of one element that is packed at a time.
inline constexpr int64_t kGemmRows = 2048, kGemmColumns = 3072, kGemmDepth = 384;
/// Progress counters of one product: at least 4 and one a tile of a block.
inline constexpr int64_t kGemmCounters = 512;

/// The library's product as a context's Gemm. Takes scratch for the largest blocks once and keeps it between calls.
class OwnGemm {
 public:
  OwnGemm(Parallel parallel, Workspace workspace, Isa isa) : context_{parallel, {}, workspace, isa} {}
  OwnGemm(const OwnGemm&) = delete;
  OwnGemm& operator=(const OwnGemm&) = delete;

  /// Valid as long as this object.
  Gemm gemm();

 private:
  void run(const GemmArgs& args);
  Context context_;
  void* scratch_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace longspan::kernels
