#pragma once
#include "attention/mask.h"
#include "common/context.h"
#include "pq/selection.h"

namespace longspan::kernels {

/// Inputs and outputs of attention. Any strides with the last dimension contiguous; K divides H.
///
///   out[t,h] = sum_j softmax_j(cap(scale * <q[t,h], k[j,g(h)]>)) v[j,g(h)],  j in visible(t, h),  g(h) = h / (H/K)
///   cap(x) = softcap * tanh(x / softcap), or x when softcap is 0
///
/// q, out [B,H,T,D]; k, v [B,K,S,D]                    float, double (CPU), bfloat16, float16 (CUDA);
///                                                     16-bit types are computed in float
/// lse    [B,H,T] contiguous                           natural log-sum-exp; float (double for double);
///                                                     -inf where nothing is visible, and then out = 0
/// D is 1..256. Offsets are 64-bit.
struct AttentionTensors {
  View<4> q, k, v, out;
  void* lse;
};

/// Gradients. `dlse` may be null. dq, dk, dv have the dtype of q and any strides with D contiguous.
struct AttentionGradients {
  View<4> dout, dq, dk, dv;
  const void* dlse;
};

/// selection: which far keys pattern kSelected sees; it needs codes, threshold and cut of topl_threshold for the same
/// arrays.
struct AttentionSpec {
  Pattern pattern;
  Layout queries, keys;
  double scale;
  double softcap;
  Selection selection;
};

/// Forward. Blocked online softmax (Milakov and Gimelshein 2018; FlashAttention-2, Dao 2023, section 3.1):
/// one task owns the query rows of all heads that share one key/value head, so each key tile is packed once for them.
/// Scratch: O(tile * D) a worker and O(T + S) for tile bounds. The result does not depend on the worker count.
void attention_fwd_cpu(const AttentionSpec& spec, const AttentionTensors& io, const Context& context);

/// Backward: five products, no atomics, no scratch of size T x D (except float accumulators for bfloat16).
/// Key blocks x query blocks run by diagonals: the blocks of one diagonal share neither query nor key rows, so every
/// gradient row has one writer at a time and is summed in a fixed order.
void attention_bwd_cpu(const AttentionSpec& spec, const AttentionTensors& io, const AttentionGradients& grads,
                       const Context& context);

/// The same on CUDA, on `context.stream`; every array of `spec` and `io` is on that device. bfloat16 and float16 multiply on
/// tensor cores (mma m16n8k16, float accumulation, probabilities rounded to the input type as in FlashAttention-2); float
/// is plain FMA. Throws std::invalid_argument for float64 and std::runtime_error with CUDA's text when a launch fails.
void attention_fwd_cuda(const AttentionSpec& spec, const AttentionTensors& io, const CudaContext& context);

/// Backward on CUDA: one kernel walks the queries of each key tile (dK, dV), one the keys of each query tile (dQ). Seven
/// products where a kernel with atomics needs five; every gradient has one writer, so the result is the same in every run.
void attention_bwd_cuda(const AttentionSpec& spec, const AttentionTensors& io, const AttentionGradients& grads,
                        const CudaContext& context);

/// Pairs (query, head, key) that the spec makes visible, summed over batch and heads; used to state arithmetic rates. Of
/// pattern kSelected the near ones only.
int64_t attention_visible_pairs(const AttentionSpec& spec, int64_t batch, int64_t heads, int64_t queries, int64_t keys);

}  // namespace longspan::kernels
