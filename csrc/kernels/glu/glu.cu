// Gated and plain activations on CUDA; see glu.h.
#include <climits>
#include <cmath>
#include <initializer_list>
#include <stdexcept>

#include "common/units.cuh"
#include "glu/glu.h"

namespace longspan::kernels {
namespace {

constexpr int kThreads = 256;

struct Activated {
  float value, slope;
};

/// 1 / (1 + e^-x), and 1 minus it, each to its own last bits.
struct Sigmoid {
  float value, rest;
};
SIMT_DEVICE Sigmoid sigmoid(float x) {
  const float e = exp2f(fabsf(x) * -1.4426950408889634f), large = 1.f / (1.f + e), small = e * large;
  return x > 0.f ? Sigmoid{large, small} : Sigmoid{small, large};
}

template <Activation Kind>
SIMT_DEVICE Activated activate(float x) {
  if constexpr (Kind == Activation::kSilu) {
    const Sigmoid s = sigmoid(x);
    return {x * s.value, simt::mutant(110) ? s.value : s.value * (1.f + x * s.rest)};
  } else if constexpr (Kind == Activation::kGelu) {
    const float phi = 0.5f * erfcf(x * -0.70710678f);
    const float density = 0.39894228f * exp2f(x * x * -0.72134752f);
    return {x * phi, simt::mutant(111) ? phi : phi + x * density};
  } else if constexpr (Kind == Activation::kGeluTanh) {
    constexpr float c = 1.5957691f, k = 0.044715f;            // x (1 + tanh u) / 2 = x sigmoid(2 u)
    const float v = x > 40.f ? 40.f : x < -40.f ? -40.f : x;  // beyond it is 0 or 1, and x^3 would overflow
    const Sigmoid s = sigmoid(c * (v + k * v * v * v));
    return {x * s.value, s.value * (1.f + v * s.rest * c * (1.f + (simt::mutant(112) ? 1.f : 3.f) * k * v * v))};
  } else if constexpr (Kind == Activation::kRelu) {
    return {fmaxf(x, 0.f), x > 0.f || simt::mutant(113) ? 1.f : 0.f};
  } else {
    const float r = fmaxf(x, 0.f);
    return {r * r, simt::mutant(114) ? r : 2.f * r};
  }
}

/// Rows [T, F] of S; `columns` is F, `units` what a row has of them, `jobs` all of them.
template <class S>
struct GluArguments {
  const S *dy, *gate, *up;
  S *to, *dup;  // y or dgate; dup
  int64_t dy_stride, gate_stride, up_stride, to_stride, dup_stride, jobs;
  int columns, units;
  bool aligned;
};

/// One thread a unit. Forward: to = act(gate) up. Backward: to = dy up act'(gate), dup = dy act(gate); both may overwrite
/// inputs.
template <class S, Activation Kind, bool Backward>
__global__ void __launch_bounds__(kThreads) glu_kernel(const GluArguments<S> a) {
  const int64_t job = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (job >= a.jobs && !simt::mutant(115)) return;
  const int64_t t = job / a.units;
  const int first = int(job % a.units) * kUnit<S>;
  float gate[kUnit<S>], up[kUnit<S>], dy[kUnit<S>];
  load_unit(gate, a.gate + t * a.gate_stride, first, a.columns, a.aligned);
  if (a.up) load_unit(up, a.up + t * (simt::mutant(116) ? a.gate_stride : a.up_stride), first, a.columns, a.aligned);
  if (Backward) load_unit(dy, a.dy + t * a.dy_stride, first, a.columns, a.aligned);
  SIMT_UNROLL
  for (int e = 0; e < kUnit<S>; ++e) {
    const Activated at = activate<Kind>(gate[e]);
    const float factor = a.up && !simt::mutant(117) ? up[e] : 1.f;
    gate[e] = Backward ? dy[e] * factor * at.slope : at.value * factor;
    if (Backward) up[e] = dy[e] * (simt::mutant(118) ? at.slope : at.value);
  }
  store_unit(a.to + t * a.to_stride, gate, first, a.columns, simt::mutant(119) || a.aligned);
  if (Backward && a.up && !simt::mutant(120)) store_unit(a.dup + t * a.dup_stride, up, first, a.columns, a.aligned);
}

template <class S, Activation Kind, bool Backward>
void launch(const View<2>& dy, const View<2>& gate, const View<2>& up, const View<2>& to, const View<2>& dup,
            cudaStream_t stream) {
  const int64_t rows = gate.size[0], F = gate.size[1], units = ceil_div(F, kUnit<S>), jobs = rows * units;
  if (jobs == 0) return;
  const int64_t blocks = ceil_div(jobs, kThreads);
  if (blocks > INT_MAX) throw std::invalid_argument("activations on CUDA take at most 2^31 - 1 blocks of rows at a time");
  const auto data = [](const View<2>& x) { return static_cast<S*>(x.data); };
  const GluArguments<S> args{data(dy),       data(gate),
                             data(up),       data(to),
                             data(dup),      dy.stride[0],
                             gate.stride[0], up.stride[0],
                             to.stride[0],   dup.stride[0],
                             jobs,           int(F),
                             int(units),     rows_aligned<S>(F, {&dy, &gate, &up, &to, &dup})};
  simt::check(simt::launch(glu_kernel<S, Kind, Backward>, dim3(unsigned(blocks)), dim3(kThreads), 0, stream, args),
              Backward ? "glu_bwd" : "glu_fwd");
}

template <class S, bool Backward, class... Views>
void with_activation(Activation kind, cudaStream_t stream, const Views&... views) {
  switch (kind) {
    case Activation::kSilu: return launch<S, Activation::kSilu, Backward>(views..., stream);
    case Activation::kGelu: return launch<S, Activation::kGelu, Backward>(views..., stream);
    case Activation::kGeluTanh: return launch<S, Activation::kGeluTanh, Backward>(views..., stream);
    case Activation::kRelu: return launch<S, Activation::kRelu, Backward>(views..., stream);
    case Activation::kRelu2: return launch<S, Activation::kRelu2, Backward>(views..., stream);
  }
}

template <bool Backward, class... Views>
void dispatch(DType dtype, Activation kind, const CudaContext& context, const Views&... views) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  switch (dtype) {
    case DType::kFloat32: return with_activation<float, Backward>(kind, stream, views...);
    case DType::kBFloat16: return with_activation<__nv_bfloat16, Backward>(kind, stream, views...);
    case DType::kFloat16: return with_activation<__half, Backward>(kind, stream, views...);
    default: throw std::invalid_argument("activations on CUDA take float32, float16 and bfloat16, not float64");
  }
}

}  // namespace

void glu_fwd_cuda(const GluTensors& io, const CudaContext& context) {
  dispatch<false>(io.gate.dtype, io.activation, context, View<2>{}, io.gate, io.up, io.y, View<2>{});
}

void glu_bwd_cuda(const GluGradients& io, const CudaContext& context) {
  dispatch<true>(io.gate.dtype, io.activation, context, io.dy, io.gate, io.up, io.dgate, io.dup);
}

}  // namespace longspan::kernels
