#pragma once
// Which L keys each query keeps, by the integer scores of codes (pq/selection.h).
#include "attention/mask.h"
#include "common/context.h"
#include "pq/selection.h"

namespace longspan::kernels {

/// Queries and keys of one call. The pattern is kSelected: its window, sinks and global keys count among the `budget` keys
/// of a row. Shapes: H query heads, K key heads with codes of their own, K divides H; G codebooks, G divides K.
struct ToplSpec {
  Pattern pattern;
  Layout queries, keys;
  int64_t budget;
  int64_t B, H, K, T, S;
};

/// q [B,H,T,D] is for kAdc: float, double (CPU), bfloat16, float16 (CUDA), any strides with D contiguous; null data for
/// kMatch. `selection` has codes and codebook; threshold and cut are outputs here.
struct ToplTensors {
  View<4> q;
  Selection selection;
};

struct ToplThreshold {
  void* threshold;
  int32_t *cut, *kept;
};

/// The threshold form of the kept set. Of the n keys that a row can reach, `near` are kept in any case; of the others the
/// r = min(budget, n) - near with the highest scores, the newest (highest number) of equal ones.
///
///   threshold  the largest t with at least r of them at t or above; kKeepsAll if r is all of them, keeps_none if r <= 0
///   cut        the number of the r-th newest of those at the threshold, those above it counted first; 0 for kKeepsAll
///   kept       near + max(r, 0)
///
/// threshold int8 (kMatch) or int16 (kAdc), cut and kept int32, all [B,H,T] contiguous. Integer arithmetic alone: the same
/// on every instruction set and on CUDA. Nothing of the size T x S exists. Scratch: codes of all keys by subspace, M bytes a
/// key; a worker's scores of one row, 2 S bytes, and tables of 64 rows.
void topl_threshold_cpu(const ToplSpec& spec, const ToplTensors& io, const ToplThreshold& out, const Context& context);
void topl_threshold_cuda(const ToplSpec& spec, const ToplTensors& io, const ToplThreshold& out, const CudaContext& context);

/// The kept keys as lists: indices int32 [B,H,T,slots], increasing, -1 behind the last; `selection` with its threshold and
/// cut. Keys beyond the slots are left out: near keys of a row can be more than its budget.
void topl_indices_cpu(const ToplSpec& spec, const ToplTensors& io, int64_t slots, int32_t* indices, const Context& context);
void topl_indices_cuda(const ToplSpec& spec, const ToplTensors& io, int64_t slots, int32_t* indices,
                       const CudaContext& context);

/// The tables of kAdc alone: bytes [B,H,T,M,16 or 256].
void adc_table_cpu(const ToplSpec& spec, const ToplTensors& io, uint8_t* tables, const Context& context);
void adc_table_cuda(const ToplSpec& spec, const ToplTensors& io, uint8_t* tables, const CudaContext& context);

}  // namespace longspan::kernels
