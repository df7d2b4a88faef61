// Softmax cross-entropy of rows of logits, and its gradient; see loss.h.
#include <climits>
#include <cmath>

#include "common/convert.cuh"
#include "loss/loss.h"

namespace longspan::kernels {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
/// e^x for x <= 0. Differences of scores come here unscaled: scores in base 2 would round by their size, not by theirs.
SIMT_DEVICE float exp_nonpositive(float x) { return exp2f(x * 1.4426950408889634f); }

/// A maximum, and the sum of e^(z - maximum) below it (Milakov and Gimelshein 2018).
struct SoftSum {
  float top = -INFINITY, sum = 0;

  SIMT_DEVICE void add(float z) {
    const float high = fmaxf(top, z);
    if (high == -INFINITY) return;
    sum = sum * exp_nonpositive(top - high) + exp_nonpositive(z - high);
    top = high;
  }
  SIMT_DEVICE void add(const SoftSum& other) {
    const float high = fmaxf(top, other.top);
    if (high == -INFINITY) return;
    sum = sum * exp_nonpositive(top - high) + other.sum * exp_nonpositive(other.top - high);
    top = high;
  }
};

/// Raw products to scores: cap(scale * (x + bias)), with `factor` = scale, or scale / softcap.
template <class S>
struct Scores {
  const S* bias;
  float factor, softcap;

  SIMT_DEVICE float operator()(float x, int64_t v) const {
    const float z = (bias ? x + to_float(bias[v]) : x) * factor;
    return softcap > 0 ? softcap * tanhf(z) : z;
  }
  /// How the soft-cap scales a gradient where the score is z.
  SIMT_DEVICE float slope(float z) const {
    const float t = z / softcap;
    return softcap > 0 ? 1.f - t * t : 1.f;
  }
};

SIMT_DEVICE void store4(float* to, float4 x) { *reinterpret_cast<float4*>(to) = x; }
template <class S>
SIMT_DEVICE void store4(S* to, float4 x) {
  *reinterpret_cast<uint2*>(to) = {simt::pack2(x.x, x.y, S()), simt::pack2(x.z, x.w, S())};
}

/// Calls body(v, x) for this thread's columns in increasing order; four at a time where rows are aligned.
template <class F>
SIMT_DEVICE void each_column(const float* row, int64_t V, bool aligned, F&& body) {
  const int64_t whole = aligned ? V / 4 : 0;
  for (int64_t i = threadIdx.x; i < whole; i += kThreads) {
    const float4 x = reinterpret_cast<const float4*>(row)[i];
    body(4 * i, x.x), body(4 * i + 1, x.y), body(4 * i + 2, x.z), body(4 * i + 3, x.w);
  }
  for (int64_t v = 4 * whole + threadIdx.x; v < V; v += kThreads) body(v, row[v]);
}

/// to[v] = value(v, row[v]); `to` may be `row`: every column is read and written by one thread.
template <class S, class F>
SIMT_DEVICE void map_columns(const float* row, S* to, int64_t V, bool aligned, F&& value) {
  const int64_t whole = aligned ? V / 4 : 0;
  for (int64_t i = threadIdx.x; i < whole; i += kThreads) {
    const float4 x = reinterpret_cast<const float4*>(row)[i];
    store4(to + 4 * i, {value(4 * i, x.x), value(4 * i + 1, x.y), value(4 * i + 2, x.z), value(4 * i + 3, x.w)});
  }
  for (int64_t v = 4 * whole + threadIdx.x; v < V; v += kThreads) store(to + v, value(v, row[v]));
}

SIMT_DEVICE SoftSum block_sum(SoftSum part) {
  SIMT_SHARED(SoftSum[kWarps], parts);
  SIMT_UNROLL
  for (int offset = 16; offset > 0; offset /= 2) {
    SoftSum other;
    other.top = __shfl_xor_sync(~0u, part.top, offset);
    other.sum = __shfl_xor_sync(~0u, part.sum, simt::mutant(41) ? 1 : offset);
    part.add(other);
  }
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = part;
  if (!simt::mutant(42)) __syncthreads();
  SoftSum all = parts[0];
  SIMT_UNROLL
  for (int i = 1; i < kWarps; ++i) all.add(parts[i]);
  return all;
}

template <class S>
__global__ void __launch_bounds__(kThreads, 4)
    cross_entropy_kernel(const CrossEntropyRows r, Scores<S> scores, bool aligned) {
  const int64_t i = blockIdx.x, t = r.index ? r.index[i] : i;
  const float* row = r.logits + i * r.stride;
  S* gradient = r.gradient ? static_cast<S*>(r.gradient) + i * r.gradient_stride : nullptr;
  const int64_t label = r.labels[t];
  if (label == r.ignore_index && !simt::mutant(43)) {
    if (threadIdx.x == 0) r.losses[t] = 0;
    if (gradient) map_columns(row, gradient, r.V, aligned, [](int64_t, float) { return 0.f; });
    return;
  }
  const bool valid = label >= 0 && label < r.V;
  const float weight = valid ? (r.row_weights ? r.row_weights[t] : 1.f) : NAN;
  const float target = valid ? scores(row[label], label) : 0.f;
  SoftSum part;
  each_column(row, r.V, aligned, [&](int64_t v, float x) { part.add(scores(x, v)); });
  const SoftSum all = block_sum(part);  // also: every thread has read the label's logit before any is overwritten
  if (threadIdx.x == 0) r.losses[t] = weight * ((all.top - target) + logf(all.sum));
  if (!gradient) return;
  const float outer = weight * r.scale, inverse = 1.f / all.sum;
  map_columns(row, gradient, r.V, simt::mutant(44) ? true : aligned, [&](int64_t v, float x) {
    const float z = scores(x, v);
    const float p = exp_nonpositive(z - all.top) * inverse;
    return (v == label && !simt::mutant(45) ? p - 1.f : p) * outer * scores.slope(z);
  });
}

template <class S>
void launch(const CrossEntropyRows& r, cudaStream_t stream) {
  const Scores<S> scores{static_cast<const S*>(r.bias), r.softcap > 0 ? r.scale / r.softcap : r.scale, r.softcap};
  const bool aligned = reinterpret_cast<uintptr_t>(r.logits) % 16 == 0 && r.stride % 4 == 0 &&
                       reinterpret_cast<uintptr_t>(r.gradient) % 16 == 0 && (!r.gradient || r.gradient_stride % 4 == 0);
  simt::check(simt::launch(cross_entropy_kernel<S>, dim3(unsigned(r.rows)), dim3(kThreads), 0, stream, r, scores, aligned),
              "cross_entropy_rows");
}

}  // namespace

void cross_entropy_rows_cuda(const CrossEntropyRows& rows, const CudaContext& context) {
  if (rows.rows == 0) return;
  if (rows.rows > INT_MAX) throw std::invalid_argument("cross_entropy_rows on CUDA takes at most 2^31 - 1 rows at a time");
  const auto stream = static_cast<cudaStream_t>(context.stream);
  if (rows.dtype == DType::kBFloat16) return launch<__nv_bfloat16>(rows, stream);
  if (rows.dtype == DType::kFloat16) return launch<__half>(rows, stream);
  launch<float>(rows, stream);
}

}  // namespace longspan::kernels
