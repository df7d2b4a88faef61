// Rotary position embedding; see rope.h.
#include "common/vec.h"
#include "rope/rope.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {
namespace {

/// One head of one token.
template <class T, class S>
void rotate(const S* x, S* y, const T* cos, const T* sin, T sign, int64_t pairs, bool interleaved) {
  const int64_t step = interleaved ? 2 : 1, other = interleaved ? 1 : pairs;
#pragma GCC ivdep  // y is x or apart from it: no pair reads what another writes
  for (int64_t i = 0; i < pairs; ++i) {
    const T a = load_as<T>(x + i * step), b = load_as<T>(x + i * step + other), s = sign * sin[i];
    store_as<T>(y + i * step, a * cos[i] - b * s);
    store_as<T>(y + i * step + other, a * s + b * cos[i]);
  }
}

template <class S>
void run(const RopeSpec& spec, const RopeTensors& io, const Context& context) {
  using T = Compute<S>;
  constexpr int64_t kTokens = 32;  // a task
  const int64_t B = io.x.size[0], H = io.x.size[1], tokens = io.x.size[2], D = io.x.size[3], pairs = io.cos.size[1];
  const int64_t runs = ceil_div(tokens, kTokens);
  const T sign = spec.inverse ? T(-1) : T(1);
  const auto row = [](const View<4>& v, int64_t b, int64_t h, int64_t t) {
    return static_cast<S*>(v.data) + b * v.stride[0] + h * v.stride[1] + t * v.stride[2];
  };
  parallel_for(context, B * runs, [&](int64_t task, int) {
    const int64_t b = task / runs, first = task % runs * kTokens;
    for (int64_t t = first; t < tokens && t < first + kTokens; ++t) {
      const int64_t p = io.positions[b * io.positions_batch + t];
      const T* cos = static_cast<const T*>(io.cos.data) + p * io.cos.stride[0];
      const T* sin = static_cast<const T*>(io.sin.data) + p * io.sin.stride[0];
      for (int64_t h = 0; h < H; ++h) {
        const S* x = row(io.x, b, h, t);
        S* y = row(io.y, b, h, t);
        // With constant strides both layouts are loops over vectors.
        spec.interleaved ? rotate<T, S>(x, y, cos, sin, sign, pairs, true)
                         : rotate<T, S>(x, y, cos, sin, sign, pairs, false);
        if (x != y)
          for (int64_t d = 2 * pairs; d < D; ++d) y[d] = x[d];
      }
    }
  });
}

}  // namespace

void rope(const RopeSpec& spec, const RopeTensors& io, const Context& context) {
  switch (io.x.dtype) {
    case DType::kFloat32: return run<float>(spec, io, context);
    case DType::kFloat64: return run<double>(spec, io, context);
    case DType::kBFloat16: return run<bfloat16>(spec, io, context);
    case DType::kFloat16: return;  // rope_cpu refuses it
  }
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
