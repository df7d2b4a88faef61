#pragma once
#include <vector>

#include "common/context.h"

namespace longspan::kernels {

/// What masked elements (those that the mask does not keep) still do in a step; specs of Gradient-Mask Tuning.
enum class MaskMode : int8_t {
  kGradient,  // their gradient is 0: moments fade, and what is left of them and the decay move the weight
  kUpdate,    // moments take the whole gradient; the weight is moved by decay only
  kFreeze,    // no bit of weight or moments changes
};

/// Which elements of a tensor a step keeps.
enum class MaskKind : int8_t {
  kAll,
  kThreshold,  // |g| above the group's threshold, or equal to it and numbered below its cut; never g = 0
  kBits,       // uint8 [ceil(size / 8)]: bit i % 8 of byte i / 8
  kRows,       // uint8 [rows], one a row of `columns` elements
  kColumns,    // uint8 [columns]
  kNone,       // nothing: a frozen tensor
};

/// One parameter among many; everything contiguous, `size` elements.
struct UpdateTensor {
  void* param;  // float32 or bfloat16: what is stepped
  DType param_dtype;
  void* grad;  // float32, bfloat16, or float16 on CUDA; set to 0 after use if asked for
  DType grad_dtype;
  float* first;   // exp_avg, or the momentum buffer; null for plain SGD
  float* second;  // exp_avg_sq; null for SGD
  void* copy;     // null, or bfloat16 (float16 on CUDA): the parameter rounded to it after the step
  DType copy_dtype;
  int64_t size, columns;  // columns: of the row and column masks
  MaskKind kind;
  const uint8_t* mask;
  int32_t group;   // of bits and cut
  int64_t number;  // of the first element within its group
};

/// Shared by the tensors of a call; arrays in the memory of the tensors, so that nothing waits for them.
///   bits [G] int32, cut [G] int64   thresholds as kth_magnitude gives them; null without threshold masks
///   factors [n] float32             the gradient of tensor i is multiplied by factors[i]; NaN: nothing of it changes but
///                                   its gradient, which is cleared
///   scalars float32                 see the steps
///   zero_grad                       gradients become 0
///   stochastic, seed                bfloat16 parameters are rounded up with the probability of what is cut off, by bits of
///                                   Philox4x32-10 with key `seed`, counter (element / 8, tensor); else to nearest even
struct UpdateSpec {
  MaskMode mode;
  const int32_t* bits;
  const int64_t* cut;
  const float* factors;
  const float* scalars;
  bool zero_grad, stochastic;
  uint64_t seed;
};

/// AdamW (Loshchilov and Hutter 2017, algorithm 2), scalars = {decay, beta1, 1 - beta1, beta2, 1 - beta2, rate, root, eps}
/// with decay = 1 - lr weight_decay, rate = lr / (1 - beta1^t), root = sqrt(1 - beta2^t):
///
///   p = decay p;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;  p = p - rate m / (sqrt(v) / root + eps)
///
/// in float32, each operation rounded: the same bits with every instruction set and number of threads. One pass.
/// Throws std::invalid_argument for float64 and, on the CPU, float16.
void masked_adamw_cpu(const UpdateSpec& spec, const std::vector<UpdateTensor>& tensors, const Context& context);
void masked_adamw_cuda(const UpdateSpec& spec, const std::vector<UpdateTensor>& tensors, const CudaContext& context);

/// Stochastic gradient descent with momentum as torch.optim.SGD, scalars = {lr, momentum, weight_decay}:
///
///   g = g + weight_decay p;  b = momentum b + g;  p = p - lr b          (b is g itself without a buffer)
void masked_sgd_cpu(const UpdateSpec& spec, const std::vector<UpdateTensor>& tensors, const Context& context);
void masked_sgd_cuda(const UpdateSpec& spec, const std::vector<UpdateTensor>& tensors, const CudaContext& context);

}  // namespace longspan::kernels
