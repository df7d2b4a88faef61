#pragma once
// Attention over lists of keys: rows of k and v are gathered, so it pays where lists are short beside the keys.
#include "common/context.h"

namespace longspan::kernels {

/// The keys of each query of each head.
///
/// indices  int32 [B,H,T,L] contiguous: increasing key numbers, -1 behind the last
/// starts   int32 [B,H,S+1], rows int32 [B,H,T*L]: the transposed lists, for the backward: of `rows`, those from starts[j]
///          to starts[j+1] are the queries that have key j, increasing. Null in the forward.
struct KeyLists {
  const int32_t* indices;
  int64_t slots;
  const int32_t *starts = nullptr, *rows = nullptr;
};

/// q, out [B,H,T,D]; k, v [B,K,S,D], K divides H: float, double (CPU), bfloat16, float16 (CUDA), any strides with D
/// contiguous, D 1..256; lse [B,H,T] contiguous, float (double for double). 16-bit types are computed in float.
struct ListAttentionTensors {
  View<4> q, k, v, out;
  void* lse;
};

/// Gradients, of the dtype of q and any strides with D contiguous. `dlse` may be null.
struct ListAttentionGradients {
  View<4> dout, dq, dk, dv;
  const void* dlse;
};

/// out[t,h] = sum over listed j of softmax_j(cap(scale <q[t,h], k[j]>)) v[j], lse the log of the softmax's sum; an empty
/// list gives out 0 and lse -inf. Scratch: padded copies of k and v in the accumulation type where D is not a whole number
/// of vectors or they are 16-bit; the scores of one row a worker. The result does not depend on the worker count.
void list_attention_fwd_cpu(const KeyLists& lists, double scale, double softcap, const ListAttentionTensors& io,
                            const Context& context);
void list_attention_fwd_cuda(const KeyLists& lists, double scale, double softcap, const ListAttentionTensors& io,
                             const CudaContext& context);

/// dq from the lists; dk and dv from the transposed lists, so that every row has one writer: seven products of gathered
/// rows.
void list_attention_bwd_cpu(const KeyLists& lists, double scale, double softcap, const ListAttentionTensors& io,
                            const ListAttentionGradients& grads, const Context& context);
void list_attention_bwd_cuda(const KeyLists& lists, double scale, double softcap, const ListAttentionTensors& io,
                             const ListAttentionGradients& grads, const CudaContext& context);

/// Shapes of lists: `lists` rows of T queries with L slots each, and S keys.
struct ListShape {
  int64_t lists, T, L, S;
};

/// The queries that have each key, increasing: starts int32 [lists, S+1], rows int32 [lists, T*L], -1 behind the last.
/// Throws std::invalid_argument on the CPU for a number that is no key.
void list_transpose_cpu(const ListShape& shape, const int32_t* indices, int32_t* starts, int32_t* rows,
                        const Context& context);
void list_transpose_cuda(const ListShape& shape, const int32_t* indices, int32_t* starts, int32_t* rows,
                         const CudaContext& context);

}  // namespace longspan::kernels
