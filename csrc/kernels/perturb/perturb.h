#pragma once
#include <vector>

#include "common/context.h"

namespace longspan::kernels {

enum class Distribution : int8_t { kGaussian, kRademacher };

/// Noise z that is a pure function of (seed, step, tensor_id, stream, logical index), by Philox4x32-10:
///
///   key = (low(seed) ^ low(step), high(seed) ^ tensor_id), counter = (low(q), high(q), stream, 0)
///   Gaussian    q = index / 4: words 0, 1 and 2, 3 give one Box-Muller pair each (noise.h)
///   Rademacher  q = index / 128: bit index % 32 of word index / 32 % 4 is 0 for +1 and 1 for -1
///
/// low and high are 32-bit halves; of a step the low one counts. Bits are those of every instruction set, device, number of
/// threads and shard.
///   seeds, steps int64 [members]   in the memory of the tensors, so that nothing waits for them
struct NoiseSpec {
  Distribution distribution;
  uint32_t stream;
  const int64_t *seeds, *steps;
  int64_t members;
};

/// One tensor among many; everything contiguous, `size` elements, float32 or bfloat16, float16 on CUDA. Target and copy may
/// be null; the target may be the source itself, else nothing overlaps.
struct PerturbTensor {
  const void* source;
  void* target;
  void* copy;
  DType source_dtype, target_dtype, copy_dtype;
  int64_t size, offset;  // offset: the logical index of the first element, for a shard of a larger tensor
  uint32_t tensor_id;
};

/// target = source + scale z, scale float32 [1] (section 3 of MeZO, Malladi et al. 2023; section 2 of OpenAI's Evolution
/// Strategies, Salimans et al. 2017). noise.members must be 1.
///
/// This is es_update with one member, coefficient scale, alpha 1 and no decay, to the last bit. One pass, no scratch.
/// Throws std::invalid_argument for float64 and, on the CPU, float16.
void perturb_cpu(const NoiseSpec& noise, const float* scale, const std::vector<PerturbTensor>& tensors,
                 const Context& context);
void perturb_cuda(const NoiseSpec& noise, const float* scale, const std::vector<PerturbTensor>& tensors,
                  const CudaContext& context);

/// Float32 arrays in the memory of the tensors; null alpha is 1, null decay is 0.
struct EsWeights {
  const float* coefficients;  // [members]
  const float* alpha;         // [1]
  const float* decay;         // [tensors]
};

/// target = copy = (1 - decay) source + alpha sum_n coefficients[n] z_n, in one pass over the weights:
///
///   w_n = alpha * coefficients[n];  s = -0, then s = s + w_n * z_n in the order of n, where w_n is not 0;
///   y = (1 - decay) * source + s;  target = round(y);  copy = round(y)
///
/// each operation rounded to float32 by itself, y rounded to nearest even. Members of weight 0 change no bit, and cost
/// nothing. No scratch. Throws as perturb_cpu.
void es_update_cpu(const NoiseSpec& noise, const EsWeights& weights, const std::vector<PerturbTensor>& tensors,
                   const Context& context);
void es_update_cuda(const NoiseSpec& noise, const EsWeights& weights, const std::vector<PerturbTensor>& tensors,
                    const CudaContext& context);

}  // namespace longspan::kernels
