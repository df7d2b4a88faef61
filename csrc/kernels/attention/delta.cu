// Row terms of the backward: delta = sum_d dout out - dlse, and lse in base 2.
#include <cmath>

#include "attention/launch.h"
#include "common/convert.cuh"
#include "common/fma_tile.cuh"

namespace longspan::kernels {
namespace {

constexpr int kThreads = 128;

struct Row {
  int row, head, batch;
};
SIMT_DEVICE Row row_of(const AttentionArguments& a, int64_t job) {
  return {int(job % a.queries), int(job / a.queries % a.heads), int(job / a.queries / a.heads)};
}

SIMT_DEVICE void store(const AttentionArguments& a, int64_t job, float dot) {
  const float lse = a.lse[job];
  a.lse_log2[job] = lse == -INFINITY ? INFINITY : lse * kLog2e;
  a.delta[job] = a.dlse ? dot - a.dlse[job] : dot;
}

/// 16-bit inputs: one warp a row.
template <class T>
__global__ void __launch_bounds__(kThreads) delta_kernel(const AttentionArguments a, int64_t rows) {
  const int lane = int(threadIdx.x) & 31;
  const int64_t job = int64_t(blockIdx.x) * (kThreads / 32) + int(threadIdx.x) / 32;
  if (job >= rows) return;
  const Row at = row_of(a, job);
  const T* out = a.out.at<T>(at.batch, at.head) + at.row * a.out.row;
  const T* dout = a.dout.at<T>(at.batch, at.head) + at.row * a.dout.row;
  float sum = 0;
  for (int d = lane; d < a.D; d += 32) sum += to_float(out[d]) * to_float(dout[d]);
  SIMT_UNROLL
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
  if (lane == 0) store(a, job, sum);
}

/// float32: one thread a row, in the order in which the backward sums dp.
__global__ void __launch_bounds__(kThreads) delta_f32_kernel(const AttentionArguments a, int64_t rows) {
  const int64_t job = int64_t(blockIdx.x) * kThreads + int(threadIdx.x);
  if (job >= rows) return;
  const Row at = row_of(a, job);
  const float* out = a.out.at<float>(at.batch, at.head) + at.row * a.out.row;
  const float* dout = a.dout.at<float>(at.batch, at.head) + at.row * a.dout.row;
  float sum = 0;
  for (int d = 0; d < a.D; d += 4) {
    float x[4], y[4];
    SIMT_UNROLL
    for (int e = 0; e < 4; ++e) x[e] = d + e < a.D ? dout[d + e] : 0.f, y[e] = d + e < a.D ? out[d + e] : 0.f;
    sum = dot_step(sum, {x[0], x[1], x[2], x[3]}, {y[0], y[1], y[2], y[3]});
  }
  store(a, job, sum);
}

template <class Kernel>
void launch(Kernel kernel, int rows_per_block, const AttentionArguments& args, cudaStream_t stream) {
  const int64_t rows = int64_t(args.batch) * args.heads * args.queries;
  if (rows == 0) return;
  simt::check(simt::launch(kernel, dim3(unsigned(ceil_div(rows, rows_per_block))), dim3(kThreads), 0, stream, args, rows),
              "attention_bwd (row terms)");
}

}  // namespace

void launch_delta(const AttentionArguments& args, DType dtype, cudaStream_t stream) {
  if (dtype == DType::kBFloat16) return launch(delta_kernel<__nv_bfloat16>, kThreads / 32, args, stream);
  if (dtype == DType::kFloat16) return launch(delta_kernel<__half>, kThreads / 32, args, stream);
  launch(delta_f32_kernel, kThreads, args, stream);
}

}  // namespace longspan::kernels
