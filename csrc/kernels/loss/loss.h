#pragma once
#include "common/context.h"

namespace longspan::kernels {

/// z = cap(scale * (hidden weight^T + bias)), cap(x) = softcap * tanh(x / softcap), or x when softcap is 0.
struct LinearCrossEntropySpec {
  int64_t segment;       // at most this many rows of logits exist at a time; at least 1
  int64_t ignore_index;  // rows with this label are not computed at all
  double logit_scale;
  double logit_softcap;
};

/// Inputs and outputs of the loss of T tokens over a vocabulary of V. S is the dtype of hidden; statistics are float, or
/// double when S is double.
///
///   losses[t] = w[t] * (log sum_v exp z[t,v] - z[t, labels[t]]),  0 where the label is ignored or the weight is 0
///   total     = sum_t losses[t], summed in double in the order of t
///
/// hidden [T,C], weight [V,C]     S, last dimension contiguous
/// bias [V] or null               S
/// labels [T]                     0 <= label < V, or ignore_index
/// row_weights [T] or null        statistics, of either sign; null is 1
/// losses [T], total              statistics; either may be null
/// dhidden [T,C], dweight [V,C], dbias [V]   S, gradients of total; null data where not wanted
struct LinearCrossEntropyTensors {
  View<2> hidden, weight;
  const void* bias;
  const int64_t* labels;
  const void* row_weights;
  void *losses, *total;
  View<2> dhidden, dweight;
  void* dbias;
};

/// Loss and gradients of a language-model head, one segment of logits at a time (Liger Kernel, Hsu et al. 2024, section
/// 3.2, fused linear cross-entropy): the logits of a segment turn into their own gradient in place, so backward only
/// scales what is computed here. Rows that count are gathered first; others cost nothing but the zeros of dhidden.
/// Scratch: segment * V statistics, the gathered rows (2 * segment * C), for bfloat16 V * C floats when dweight is wanted,
/// and what context.gemm takes. Deterministic; the result does not depend on the worker count.
/// Throws std::invalid_argument naming the label, its row and V when a label is out of range; nothing is written then.
void linear_cross_entropy_cpu(const LinearCrossEntropySpec& spec, const LinearCrossEntropyTensors& io,
                              const Context& context);

}  // namespace longspan::kernels
