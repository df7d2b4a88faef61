// Backward of the row norms on CUDA: one block a chunk of rows; see norm.h.

#include "norm/arguments.h"
#include "norm/launch.h"
#include "norm/row.cuh"

namespace longspan::kernels {
namespace {

/// A thread owns the same columns of all rows of its chunk, so that its parts of dweight and dbias need no exchange: they
/// are summed in global memory, [chunks, C], which stays in the L1 cache.
template <class S, class W, bool Centered>
__global__ void __launch_bounds__(kRowThreads) norm_bwd_kernel(const NormGradientRows<S, W> a) {
  const int64_t begin = blockIdx.x * a.chunk_rows;
  const int64_t end = begin + a.chunk_rows < a.rows || simt::mutant(70) ? begin + a.chunk_rows : a.rows;
  float* dweight = a.dweight_parts ? a.dweight_parts + int64_t(blockIdx.x) * a.C : nullptr;
  float* dbias = a.dbias_parts ? a.dbias_parts + int64_t(blockIdx.x) * a.C : nullptr;
  for (int64_t t = begin; t < end; ++t) {
    const S *dy = a.dy + t * a.dy_stride, *x = a.x + t * a.x_stride;
    const float rstd = a.rstd[t], mean = Centered && !simt::mutant(71) ? a.mean[t] : 0.f;
    const bool first_row = t == begin && !simt::mutant(72);
    float along = 0, level = 0;
    each_unit<S>(a.C, [&](int first) {
      float g[kUnit<S>], n[kUnit<S>];
      load_unit(g, dy, first, a.C, a.aligned);
      load_unit(n, x, first, a.C, a.aligned);
      SIMT_UNROLL
      for (int e = 0; e < kUnit<S>; ++e) {
        const int c = first + e;
        if (c >= a.C) break;
        n[e] = (n[e] - mean) * rstd;
        if (dweight) dweight[c] = (first_row ? 0.f : dweight[c]) + g[e] * n[e];
        if (dbias) dbias[c] = (first_row ? 0.f : dbias[c]) + g[e];
        if (a.weight) g[e] *= a.weight_offset + to_float(a.weight[c]);
        along += g[e] * n[e];
        level += g[e];
      }
    });
    along = row_sum(along) / float(a.C);
    level = Centered && !simt::mutant(73) ? row_sum(level) / float(a.C) : 0.f;
    S* dx = a.dx + t * a.dx_stride;
    each_unit<S>(a.C, [&](int first) {
      float g[kUnit<S>], n[kUnit<S>], add[kUnit<S>] = {};
      load_unit(g, dy, first, a.C, a.aligned);
      load_unit(n, x, first, a.C, a.aligned);
      if (a.dsum && !simt::mutant(74)) load_unit(add, a.dsum + t * a.dsum_stride, first, a.C, a.aligned);
      SIMT_UNROLL
      for (int e = 0; e < kUnit<S>; ++e) {
        const int c = first + e;
        if (c >= a.C) break;
        n[e] = (n[e] - mean) * rstd;
        if (a.weight && !simt::mutant(78)) g[e] *= a.weight_offset + to_float(a.weight[c]);
        g[e] = rstd * (g[e] - (simt::mutant(79) ? 0.f : along) * n[e] - level) + add[e];
      }
      store_unit(dx, g, first, a.C, simt::mutant(75) || a.aligned);
    });
  }
}

/// to[c] = sum over chunks of parts[chunk, c], one thread a column; neighbours read neighbours. In double: a thousand parts
/// of one sign in float would lose more than torch's pairwise sums do.
template <class W>
__global__ void __launch_bounds__(kRowThreads) norm_sum_parts_kernel(const float* parts, int64_t chunks, int C, W* to) {
  const int c = int(blockIdx.x) * kRowThreads + int(threadIdx.x);
  if (c >= C && !simt::mutant(76)) return;
  double sum = 0;
  for (int64_t chunk = simt::mutant(77) ? 1 : 0; chunk < chunks; ++chunk) sum += double(parts[chunk * C + c]);
  store(to + c, float(sum));
}

template <class S, class W>
void run(const NormSpec& spec, const NormGradients& io, const CudaContext& context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const int64_t rows = io.x.size[0], C = io.x.size[1];
  const int64_t chunk_rows = norm_cuda_chunk_rows(rows), chunks = ceil_div(rows, chunk_rows);
  const auto data = [](const View<2>& v) { return static_cast<S*>(v.data); };
  const auto parts = [&](void* wanted) {
    if (!wanted || chunks == 0) return static_cast<float*>(nullptr);
    return static_cast<float*>(context.workspace.get(context.workspace.self, chunks * C * int64_t(sizeof(float))));
  };
  const NormGradientRows<S, W> args{data(io.dy),
                                    data(io.dsum),
                                    data(io.x),
                                    data(io.dx),
                                    io.dy.stride[0],
                                    io.dsum.stride[0],
                                    io.x.stride[0],
                                    io.dx.stride[0],
                                    static_cast<const W*>(io.weight),
                                    static_cast<const float*>(io.rstd),
                                    static_cast<const float*>(io.mean),
                                    parts(io.dweight),
                                    parts(io.dbias),
                                    rows,
                                    chunk_rows,
                                    int(C),
                                    float(spec.weight_offset),
                                    rows_aligned<S>(C, {&io.dy, &io.dsum, &io.x, &io.dx})};
  const auto kernel = spec.centered ? norm_bwd_kernel<S, W, true> : norm_bwd_kernel<S, W, false>;
  if (chunks > 0) simt::check(simt::launch(kernel, dim3(unsigned(chunks)), dim3(kRowThreads), 0, stream, args), "norm_bwd");
  const auto sum = [&](const float* from, void* to) {
    if (to)
      simt::check(simt::launch(norm_sum_parts_kernel<W>, dim3(unsigned(ceil_div(C, kRowThreads))), dim3(kRowThreads), 0,
                               stream, from, chunks, int(C), static_cast<W*>(to)),
                  "norm_bwd (sums over rows)");
  };
  sum(args.dweight_parts, io.dweight), sum(args.dbias_parts, io.dbias);
}

}  // namespace

void norm_bwd_cuda(const NormSpec& spec, const NormGradients& io, const CudaContext& context) {
  check_norm_rows(io.x);
  dispatch_norm(io.x.dtype, io.weight_dtype, [&](auto s, auto w) { run<decltype(s), decltype(w)>(spec, io, context); });
}

}  // namespace longspan::kernels
