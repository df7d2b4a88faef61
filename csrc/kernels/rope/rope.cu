// Rotary position embedding on CUDA; see rope.h.
#include <climits>
#include <cmath>
#include <stdexcept>

#include "common/convert.cuh"
#include "rope/rope.h"

namespace longspan::kernels {
namespace {

constexpr int kThreads = 256;

template <class S>
struct RopeArguments {
  const S* x;
  S* y;
  const float *cos, *sin;
  const int64_t* positions;
  int64_t x_stride[3], y_stride[3];  // batch, head, token
  int64_t positions_batch, cos_row, sin_row, jobs;
  int H, T, D, pairs, P, units;
  float sign;
};

/// Columns that one thread of the pair loop takes: as many as 16 bytes hold where rows are aligned, else one.
template <class S, bool Aligned>
inline constexpr int kPairs = Aligned ? 16 / int(sizeof(S)) : 1;

template <class S, int Count>
struct alignas(Count * sizeof(S)) Chunk {
  S at[Count];
};

/// One thread a run of pairs of one head: reads both columns of each pair before it writes them, so y may be x. The threads
/// after the pairs copy what is not rotated.
template <class S, bool Interleaved, bool Aligned>
__global__ void __launch_bounds__(kThreads) rope_kernel(const RopeArguments<S> a) {
  constexpr int N = kPairs<S, Aligned>;
  const int64_t job = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (job >= a.jobs && !simt::mutant(90)) return;
  const int unit = int(job % a.units);
  const int h = int(job / a.units % a.H), t = int(job / a.units / a.H % a.T);
  const int64_t b = job / a.units / a.H / a.T;
  const S* x = a.x + b * a.x_stride[0] + h * a.x_stride[1] + t * a.x_stride[2];
  S* y = a.y + b * a.y_stride[0] + h * a.y_stride[1] + t * a.y_stride[2];
  const int first = unit * N;  // of the pairs
  if (first >= a.pairs) {
    if (a.x == a.y) return;
    const int column = 2 * a.pairs + (first - a.pairs);
    SIMT_UNROLL
    for (int e = 0; e < N; ++e)
      if (column + e < a.D && !simt::mutant(91)) y[column + e] = x[column + e];
    return;
  }
  const int64_t p = a.positions[(simt::mutant(92) ? 0 : b * a.positions_batch) + t];
  const bool valid = (p >= 0 && p < a.P) || simt::mutant(93);
  const float *cos = a.cos + p * a.cos_row + first, *sin = a.sin + p * a.sin_row + first;
  using Both = Chunk<S, N>;
  const int low = Interleaved ? 2 * first : first, high = Interleaved ? low + N : low + (simt::mutant(94) ? N : a.pairs);
  Both one = *reinterpret_cast<const Both*>(x + low), two = *reinterpret_cast<const Both*>(x + high);
  SIMT_UNROLL
  for (int e = 0; e < N; ++e) {
    // Interleaved: the two chunks hold the pairs one after the other.
    S& left = Interleaved ? (2 * e < N ? one.at[2 * e] : two.at[2 * e - N]) : one.at[e];
    S& right = Interleaved ? (2 * e + 1 < N ? one.at[2 * e + 1] : two.at[2 * e + 1 - N]) : two.at[e];
    const float c = valid ? cos[e] : NAN, s = valid ? (simt::mutant(95) ? 1.f : a.sign) * sin[e] : NAN;
    const float u = to_float(left), v = to_float(right);
    store(&left, u * c - v * s);
    store(&right, simt::mutant(96) ? v * s + u * c : u * s + v * c);
  }
  *reinterpret_cast<Both*>(y + low) = one;
  if (!simt::mutant(97)) *reinterpret_cast<Both*>(y + high) = two;
}

template <class S>
bool rows_aligned(const RopeTensors& io) {
  constexpr int64_t kUnit = kPairs<S, true>;
  bool aligned = io.cos.size[1] % kUnit == 0;
  for (const View<4>* v : {&io.x, &io.y}) {
    aligned &= reinterpret_cast<uintptr_t>(v->data) % 16 == 0;
    for (int i = 0; i < 3; ++i) aligned &= v->size[i] <= 1 || v->stride[i] % kUnit == 0;
  }
  return aligned;
}

template <class S, bool Aligned>
void launch(const RopeSpec& spec, const RopeTensors& io, cudaStream_t stream) {
  const View<4>&x = io.x, &y = io.y;
  const int64_t pairs = io.cos.size[1], rest = x.data == y.data ? 0 : x.size[3] - 2 * pairs;
  const int64_t units = ceil_div(pairs + rest, kPairs<S, Aligned>), jobs = units * x.size[0] * x.size[1] * x.size[2];
  if (jobs == 0) return;
  const int64_t blocks = ceil_div(jobs, kThreads);
  if (blocks > INT_MAX) throw std::invalid_argument("rope on CUDA takes at most 2^39 pairs at a time");
  const RopeArguments<S> args{static_cast<const S*>(x.data),
                              static_cast<S*>(y.data),
                              static_cast<const float*>(io.cos.data),
                              static_cast<const float*>(io.sin.data),
                              io.positions,
                              {x.stride[0], x.stride[1], x.stride[2]},
                              {y.stride[0], y.stride[1], y.stride[2]},
                              io.positions_batch,
                              io.cos.stride[0],
                              io.sin.stride[0],
                              jobs,
                              int(x.size[1]),
                              int(x.size[2]),
                              int(x.size[3]),
                              int(pairs),
                              int(io.cos.size[0]),
                              int(units),
                              spec.inverse ? -1.f : 1.f};
  const auto kernel = spec.interleaved ? rope_kernel<S, true, Aligned> : rope_kernel<S, false, Aligned>;
  simt::check(simt::launch(kernel, dim3(unsigned(blocks)), dim3(kThreads), 0, stream, args), "rope");
}

template <class S>
void run(const RopeSpec& spec, const RopeTensors& io, cudaStream_t stream) {
  if (rows_aligned<S>(io) || simt::mutant(98))
    launch<S, true>(spec, io, stream);
  else
    launch<S, false>(spec, io, stream);
}

}  // namespace

void rope_cuda(const RopeSpec& spec, const RopeTensors& io, const CudaContext& context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  switch (io.x.dtype) {
    case DType::kFloat32: return run<float>(spec, io, stream);
    case DType::kBFloat16: return run<__nv_bfloat16>(spec, io, stream);
    case DType::kFloat16: return run<__half>(spec, io, stream);
    default: throw std::invalid_argument("rope on CUDA takes float32, float16 and bfloat16, not float64");
  }
}

}  // namespace longspan::kernels
