#pragma once
#include "common/context.h"
#include "norm/norm.h"

namespace longspan::kernels {

/// Linear maps with low-rank adapters (Hu et al. 2021) that share one input, which may be normalised on the way:
///
///   z   = x, or norm(x) as norm.h defines it
///   s_i = (z . D_i) A_i^T
///   y_i = z W_i^T + b_i + scaling_i s_i B_i^T + residual_i
///
/// D_i is the dropout mask of dropout.h, a pure function of (seed_i, row, column); 1 everywhere when dropout is 0.
/// S is the dtype of x, statistics as in types.h. Neither z nor z . D_i nor an adapter's full-width product is ever stored
/// for more than a panel of rows, and none of them is kept.
struct LoraProjection {
  View<2> weight;          // [N,C] S
  const void* bias;        // [N] S, or null
  View<2> lora_a, lora_b;  // [R,C], [N,R] S or statistics, one dtype, row strides free; null data: no adapter, R is 0
  double scaling;
};

struct LoraInput {
  View<2> x;    // [T,C] S
  bool normed;  // the fields below have a meaning
  NormSpec norm;
  const void *norm_weight, *norm_bias;  // [C], `norm_dtype`; either may be null
  DType norm_dtype;
  void *rstd, *mean;     // [T] statistics: written by the forward, read by the backward; mean only when centered
  double dropout;        // p, 0 <= p < 1
  const int64_t* seeds;  // one a projection, in the memory of x's device; not read when dropout is 0
};

/// s [T, R_0 + R_1 + ...] in statistics, contiguous; the projections' parts one after the other. May be null without
/// adapters.
struct LoraOutput {
  View<2> y;         // [T,N] S
  View<2> residual;  // [T,N] S, or null data; never the memory of y
};

/// Gradients of one projection; null data where not wanted.
struct LoraGradient {
  View<2> dy;                // [T,N] S; null data: 0
  View<2> dweight;           // [N,C] S
  void* dbias;               // [N] S
  View<2> dlora_a, dlora_b;  // contiguous, the adapter's dtype
};

struct LoraInputGradient {
  View<2> dx;                       // [T,C] S, or null data
  void *dnorm_weight, *dnorm_bias;  // [C] norm_dtype, or null
};

/// Forward of `count` projections (at most kLoraGroup). CPU scratch: a panel of at most kLoraPanel normed rows, what
/// gemm.h needs, and (N + C) (R + 1) statistics. Adapters cost one pass over z and a tail of the product (gemm.h).
void lora_linear_fwd_cpu(const LoraInput& in, const LoraProjection* projections, const LoraOutput* outputs, void* s,
                         int64_t count, const Context& context);

/// Backward: with ds_i = scaling_i dy_i B_i,
///
///   dz = sum_i dy_i W_i + (ds_i A_i) . D_i,   dx = dz, or the gradient of the norm
///   dA_i = ds_i^T (z . D_i),  dB_i = scaling_i dy_i^T s_i,  dW_i = dy_i^T z,  db_i = sum_t dy_i
///
/// dy is read once for ds and dB, x once for dA. Sums over rows are in chunks whose borders depend on T alone, so that no
/// result depends on the worker count.
void lora_linear_bwd_cpu(const LoraInput& in, const LoraProjection* projections, const LoraGradient* gradients,
                         const LoraInputGradient& input_gradient, const void* s, int64_t count, const Context& context);

/// The same on CUDA for float, bfloat16 and float16; deterministic, no atomics.
void lora_linear_fwd_cuda(const LoraInput& in, const LoraProjection* projections, const LoraOutput* outputs, void* s,
                          int64_t count, const CudaContext& context);
void lora_linear_bwd_cuda(const LoraInput& in, const LoraProjection* projections, const LoraGradient* gradients,
                          const LoraInputGradient& input_gradient, const void* s, int64_t count, const CudaContext& context);

/// Projections of one call, at most.
inline constexpr int64_t kLoraGroup = 8;
/// Rows of z that exist at a time on the CPU, at most.
inline constexpr int64_t kLoraPanel = 2048;
/// Largest rank: the bias is one more column of the tail.
inline constexpr int64_t kLoraRank = 256;

}  // namespace longspan::kernels
