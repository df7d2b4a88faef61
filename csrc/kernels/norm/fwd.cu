// Forward of the row norms on CUDA: one block a row; see norm.h.
#include <climits>

#include "norm/arguments.h"
#include "norm/launch.h"
#include "norm/row.cuh"

namespace longspan::kernels {
namespace {

/// x is read once: the row waits in shared memory, where every thread finds the units that it put there.
template <class S, class W, bool Centered>
__global__ void __launch_bounds__(kRowThreads) norm_fwd_kernel(const NormRows<S, W> a) {
  S* kept = simt::dyn_smem<S>();
  const int64_t t = blockIdx.x;
  const S *x = a.x + t * a.x_stride, *residual = a.residual ? a.residual + t * a.residual_stride : nullptr;
  float part = 0;
  each_unit<S>(a.C, [&](int first) {
    float u[kUnit<S>];
    load_unit(u, x, first, a.C, a.aligned);
    if (residual) {
      float r[kUnit<S>];
      load_unit(r, residual, first, a.C, a.aligned);
      S rounded[kUnit<S>];  // the norm is of what is stored
      SIMT_UNROLL
      for (int e = 0; e < kUnit<S>; ++e) {
        store(&rounded[e], simt::mutant(62) ? u[e] : u[e] + r[e]);
        u[e] = to_float(rounded[e]);
      }
      store_unit(a.sum + t * a.sum_stride, u, first, a.C, a.aligned);
    }
    store_unit(kept, u, first, int(round_up(a.C, kUnit<S>)), true);
    SIMT_UNROLL
    for (int e = 0; e < kUnit<S>; ++e) part += Centered ? u[e] : u[e] * u[e];
  });
  float mean = 0, squares = row_sum(part);
  if (Centered) {
    mean = squares / float(a.C);
    part = 0;
    each_unit<S>(a.C, [&](int first) {
      float u[kUnit<S>];
      load_unit(u, kept, first, a.C, true);
      SIMT_UNROLL
      for (int e = 0; e < kUnit<S>; ++e) {
        const float d = first + e < a.C || simt::mutant(63) ? u[e] - mean : 0.f;
        part += d * d;
      }
    });
    squares = row_sum(part);
  }
  const float rstd = 1.f / sqrtf(squares / float(a.C) + (simt::mutant(67) ? 0.f : a.eps));
  if (threadIdx.x == 0) {
    a.rstd[simt::mutant(69) ? 0 : t] = rstd;
    if (Centered) a.mean[t] = mean;
  }
  each_unit<S>(a.C, [&](int first) {
    float u[kUnit<S>];
    load_unit(u, kept, first, a.C, true);
    SIMT_UNROLL
    for (int e = 0; e < kUnit<S>; ++e) {
      const int c = first + e;
      if (c >= a.C) break;
      u[e] = (u[e] - mean) * rstd;
      if (a.weight) u[e] *= simt::mutant(65) ? to_float(a.weight[c]) : a.weight_offset + to_float(a.weight[c]);
      if (a.bias && !simt::mutant(68)) u[e] += to_float(a.bias[c]);
    }
    store_unit(a.y + t * a.y_stride, u, first, a.C, simt::mutant(66) || a.aligned);
  });
}

template <class S, class W>
void run(const NormSpec& spec, const NormTensors& io, cudaStream_t stream) {
  const int64_t rows = io.x.size[0], C = io.x.size[1];
  const auto data = [](const View<2>& v) { return static_cast<S*>(v.data); };
  const NormRows<S, W> args{data(io.x),
                            data(io.residual),
                            data(io.sum),
                            data(io.y),
                            io.x.stride[0],
                            io.residual.stride[0],
                            io.sum.stride[0],
                            io.y.stride[0],
                            static_cast<const W*>(io.weight),
                            static_cast<const W*>(io.bias),
                            static_cast<float*>(io.rstd),
                            static_cast<float*>(io.mean),
                            int(C),
                            float(spec.eps),
                            float(spec.weight_offset),
                            rows_aligned<S>(C, {&io.x, &io.residual, &io.sum, &io.y})};
  const auto kernel = spec.centered ? norm_fwd_kernel<S, W, true> : norm_fwd_kernel<S, W, false>;
  simt::check(simt::launch(kernel, dim3(unsigned(rows)), dim3(kRowThreads), norm_row_bytes(io.x), stream, args), "norm_fwd");
}

}  // namespace

void norm_fwd_cuda(const NormSpec& spec, const NormTensors& io, const CudaContext& context) {
  check_norm_rows(io.x);
  if (io.x.size[0] == 0) return;
  const auto stream = static_cast<cudaStream_t>(context.stream);
  dispatch_norm(io.x.dtype, io.weight_dtype, [&](auto s, auto w) { run<decltype(s), decltype(w)>(spec, io, stream); });
}

}  // namespace longspan::kernels
