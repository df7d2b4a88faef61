#pragma once
#include "common/context.h"

namespace longspan::kernels {

/// Rotary position embedding (Su et al. 2021, section 3.2.2, equation 34) of the first R = 2 N columns of each head.
///
///   (a, b) -> (a cos - b sin, a sin + b cos)    angle i of token (batch, t): cos[p, i], sin[p, i], p = positions[batch, t]
///
/// The pair i is columns (i, i + N), or (2 i, 2 i + 1) when interleaved. `inverse` turns the other way, which is the
/// gradient. A table may hold a factor (attention scaling of YaRN and LongRoPE); inverse is then the transposed map, not the
/// inverse.
struct RopeSpec {
  bool interleaved, inverse;
};

/// x, y [B,H,T,D]         S, any strides with D contiguous; y is x itself, or does not overlap it: then columns from R on
/// are
///                        copied
/// cos, sin [P,N]         statistics of S, last dimension contiguous; 2 N <= D
/// positions [B,T]        0 <= position < P; row stride `positions_batch`, 0 for one row
struct RopeTensors {
  View<4> x, y;
  View<2> cos, sin;
  const int64_t* positions;
  int64_t positions_batch;
};

/// Arithmetic is in statistics, rounded once; nothing is kept. No scratch. Throws std::invalid_argument that names the first
/// position out of range with its place and P; nothing is written then.
void rope_cpu(const RopeSpec& spec, const RopeTensors& io, const Context& context);

/// The same on CUDA for float, bfloat16 and float16. It cannot wait for the device, so a position out of range gives NaN in
/// its token instead of an exception. Throws std::invalid_argument for float64.
void rope_cuda(const RopeSpec& spec, const RopeTensors& io, const CudaContext& context);

}  // namespace longspan::kernels
