#pragma once
#include "common/context.h"

namespace longspan::kernels {

/// Row normalisation. With s = x + residual (x alone where there is no residual), one row of C at a time:
///
///   centered:  mean = sum(s) / C,  rstd = 1 / sqrt(sum((s - mean)^2) / C + eps)       (Ba et al. 2016)
///   otherwise: mean = 0,           rstd = 1 / sqrt(sum(s^2) / C + eps)                (Zhang and Sennrich 2019)
///   y = (s - mean) * rstd * (weight_offset + weight) + bias
struct NormSpec {
  bool centered;
  double eps;
  double weight_offset;  // 1 for models that store weight - 1; no meaning without a weight
};

/// S is the dtype of x; statistics are float, or double when S is double.
///
/// x, residual [T,C]            S, last dimension contiguous; residual may have null data
/// weight [C], bias [C]         S or statistics, as `weight_dtype` says; either may be null: 1 and 0
/// sum [T,C]                    S, x + residual rounded once; null data without a residual. It may be x or residual
/// y [T,C]                      S
/// rstd [T], mean [T]           statistics; mean only when centered
struct NormTensors {
  View<2> x, residual;
  const void *weight, *bias;
  DType weight_dtype;
  View<2> sum, y;
  void *rstd, *mean;
};

/// Gradients. x is what was normalised (`sum` of the forward where it had a residual), with x^ = (x - mean) rstd and
/// g = dy (weight_offset + weight):
///
///   dx      = rstd (g - mean_C(g x^) x^ - [centered] mean_C(g)) + dsum
///   dweight = sum_t dy x^,  dbias = sum_t dy
///
/// dy, x, dx [T,C]              S; dx may be dsum
/// dsum [T,C]                   S, the gradient of the forward's `sum`, or null data
/// dweight, dbias [C]           weight_dtype; null where not wanted
struct NormGradients {
  View<2> dy, dsum, x;
  const void* weight;
  DType weight_dtype;
  const void *rstd, *mean;
  View<2> dx;
  void *dweight, *dbias;
};

/// Forward. Sums are in statistics, and in the sum of squares of a centered row relative to its mean. What a layer has to
/// keep for its gradient is its input, which is alive anyway, and rstd (and mean): 1 or 2 statistics a row.
/// Scratch: C statistics a worker for bfloat16, and 2 C for weight and bias.
void norm_fwd_cpu(const NormSpec& spec, const NormTensors& io, const Context& context);

/// Backward: one pass over rows. dweight and dbias are summed in chunks of rows whose borders depend on T alone, then over
/// chunks in order, so that no result depends on the worker count. Scratch: as the forward, and 2 C kNormChunks doubles.
void norm_bwd_cpu(const NormSpec& spec, const NormGradients& io, const Context& context);

/// The same on CUDA for float, bfloat16 and float16. Forward: one block a row, which is read once into shared memory.
/// Backward: one block a chunk of rows; scratch C floats a chunk, at most 1024 chunks, for each of dweight and dbias.
/// Deterministic. Throws std::invalid_argument for float64 and for rows longer than 227 KiB of shared memory.
void norm_fwd_cuda(const NormSpec& spec, const NormTensors& io, const CudaContext& context);
void norm_bwd_cuda(const NormSpec& spec, const NormGradients& io, const CudaContext& context);

/// Chunks of rows whose parts of dweight and dbias are kept before they are added up, at most.
inline constexpr int64_t kNormChunks = 64;
/// Rows of one chunk.
inline constexpr int64_t norm_chunk_rows(int64_t rows) {
  const int64_t share = ceil_div(rows, kNormChunks);
  return share > 16 ? share : 16;
}

}  // namespace longspan::kernels
