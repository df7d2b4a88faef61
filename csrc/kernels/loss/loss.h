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

/// The same on CUDA, for float and bfloat16; matrix products are `context.gemm`'s, with operands of one dtype. It does not
/// wait for the device, so all rows are multiplied and a label out of range gives NaN instead of an exception.
/// Scratch: segment * V floats and, for bfloat16, as many gradients in bfloat16; for a bfloat16 dweight of several segments
/// 2 V * C floats. Gradients of logits are rounded to bfloat16 before they are multiplied. Deterministic.
/// Throws std::invalid_argument for other dtypes and std::runtime_error with CUDA's text when a launch fails.
void linear_cross_entropy_cuda(const LinearCrossEntropySpec& spec, const LinearCrossEntropyTensors& io,
                               const CudaContext& context);

/// Rows of raw products (logits before bias, scale and soft-cap), and their gradient.
///
///   losses[t]   = w[t] * (log sum_v exp z[i,v] - z[i, labels[t]]),  t = index[i], or i when index is null
///   gradient[i] = d losses[t] / d logits[i]
///
/// logits [rows, V] float with row stride `stride`; bias [V] of `dtype` or null; gradient [rows, V] of `dtype` with row
/// stride `gradient_stride`, null where not wanted, or the logits themselves for float; the others as above, float
/// statistics. A label that is ignored gives loss 0 and a row of zeros. A label out of range cannot raise without a
/// synchronisation: it gives NaN.
struct CrossEntropyRows {
  DType dtype;
  const float* logits;
  int64_t rows, V, stride;
  void* gradient;
  int64_t gradient_stride;
  const int64_t* index;
  const int64_t* labels;
  const float* row_weights;
  const void* bias;
  int64_t ignore_index;
  float scale, softcap;
  float* losses;
};

/// One block a row: an online maximum and sum in one pass, the gradient in a second; logits are read twice.
void cross_entropy_rows_cuda(const CrossEntropyRows& rows, const CudaContext& context);

}  // namespace longspan::kernels
