// Attention over lists of keys on CUDA; see list_attention.h. A warp has one query (or, for dK and dV, one key) and its row
// over the lanes; gathered rows are read whole, one after the other.
#include <climits>
#include <cmath>
#include <stdexcept>

#include "common/convert.cuh"
#include "list_attention/list_attention.h"

namespace longspan::kernels {
namespace {

constexpr int kWarps = 4;
constexpr int kPieces = 8;  // of 32 components: D is at most 256
constexpr float kLog2e = 1.4426950408889634f;

/// [batch, head, row, D]; strides in elements.
template <class S>
struct Rows {
  S* data;
  int64_t batch, head, row;
  explicit Rows(const View<4>& x) : data(static_cast<S*>(x.data)), batch(x.stride[0]), head(x.stride[1]), row(x.stride[2]) {}
  SIMT_DEVICE S* at(int b, int h, int t) const { return data + b * batch + h * head + t * row; }
};

template <class S>
struct ListArguments {
  Rows<S> q, k, v, out, dout, dq, dk, dv;
  const int32_t *indices, *starts, *rows;
  float *lse, *delta;
  const float* dlse;
  int B, H, K, Q, N, D, slots;
  float scale, softcap;
};

/// A row over the lanes of a warp: component lane + 32 i.
struct Row {
  float at[kPieces];

  template <class S>
  SIMT_DEVICE void load(const S* from, int D) {
    const int lane = int(threadIdx.x) & 31;
    SIMT_UNROLL
    for (int i = 0; i < kPieces; ++i) at[i] = lane + 32 * i < D ? to_float(from[lane + 32 * i]) : 0.f;
  }
  template <class S>
  SIMT_DEVICE void write(S* to, int D, float factor) const {
    const int lane = int(threadIdx.x) & 31;
    SIMT_UNROLL
    for (int i = 0; i < kPieces; ++i)
      if (lane + 32 * i < D) store(to + lane + 32 * i, at[i] * factor);
  }
  SIMT_DEVICE void add(const Row& other, float factor) {
    SIMT_UNROLL
    for (int i = 0; i < kPieces; ++i) at[i] += factor * other.at[i];
  }
  SIMT_DEVICE void scale(float factor) {
    SIMT_UNROLL
    for (int i = 0; i < kPieces; ++i) at[i] *= factor;
  }
};

SIMT_DEVICE float dot(const Row& a, const Row& b) {
  float sum = 0;
  SIMT_UNROLL
  for (int i = 0; i < kPieces; ++i) sum += a.at[i] * b.at[i];
  SIMT_UNROLL
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
  return sum;
}

/// This warp's query or key: rows are numbered over batch, heads and positions.
struct Place {
  int b, h, t;
  bool inside;
  SIMT_DEVICE Place(int B, int heads, int length) {
    const int64_t row = int64_t(blockIdx.x) * kWarps + int(threadIdx.x) / 32;
    t = int(row % length), h = int(row / length % heads), b = int(row / length / heads);
    inside = row < int64_t(B) * heads * length;
  }
};

/// A pair's logit in base 2, and what it is multiplied with in the gradient.
template <class S>
SIMT_DEVICE float logit(const ListArguments<S>& a, float product, float& slope) {
  if (!(a.softcap > 0)) {
    slope = 1.f;
    return product * a.scale * kLog2e;
  }
  const float t = tanhf(product * a.scale / a.softcap);
  slope = 1.f - t * t;
  return a.softcap * kLog2e * t;
}

template <class S>
__global__ void __launch_bounds__(32 * kWarps) list_attention_fwd_kernel(const ListArguments<S> a) {
  const Place at(a.B, a.H, a.Q);
  if (!at.inside) return;
  const int kv = at.h / (a.H / a.K);
  const int64_t row = (int64_t(at.b) * a.H + at.h) * a.Q + at.t;
  const int32_t* list = a.indices + row * a.slots;
  Row q, sum{}, other;
  q.load(a.q.at(at.b, at.h, at.t), a.D);
  float top = -INFINITY, total = 0, slope;
  for (int i = 0; i < a.slots && list[i] >= 0; ++i) {
    other.load(a.k.at(at.b, kv, list[i]), a.D);
    const float z = logit(a, dot(q, other), slope), now = fmaxf(top, z), keep = exp2f(top - now), p = exp2f(z - now);
    total = (simt::mutant(220) ? total : total * keep) + p;
    other.load(a.v.at(at.b, simt::mutant(221) ? 0 : kv, list[i]), a.D);
    sum.scale(keep);
    sum.add(other, p);
    top = now;
  }
  const bool seen = total > 0;
  sum.write(a.out.at(at.b, at.h, at.t), a.D, seen ? 1.f / total : 0.f);
  if ((threadIdx.x & 31) == 0) a.lse[row] = seen ? top / kLog2e + logf(total) : -INFINITY;
}

template <class S>
__global__ void __launch_bounds__(32 * kWarps) list_attention_bwd_queries_kernel(const ListArguments<S> a) {
  const Place at(a.B, a.H, a.Q);
  if (!at.inside) return;
  const int kv = at.h / (a.H / a.K);
  const int64_t row = (int64_t(at.b) * a.H + at.h) * a.Q + at.t;
  const int32_t* list = a.indices + row * a.slots;
  Row q, dout, sum{}, other, value;
  q.load(a.q.at(at.b, at.h, at.t), a.D);
  dout.load(a.dout.at(at.b, at.h, at.t), a.D);
  other.load(a.out.at(at.b, at.h, at.t), a.D);
  const float delta = dot(dout, other) - (a.dlse ? a.dlse[row] : 0.f), lse = a.lse[row] * kLog2e;
  if ((threadIdx.x & 31) == 0) a.delta[row] = delta;
  for (int i = 0; i < a.slots && list[i] >= 0; ++i) {
    other.load(a.k.at(at.b, kv, list[i]), a.D);
    value.load(a.v.at(at.b, kv, list[i]), a.D);
    float slope;
    const float p = exp2f(logit(a, dot(q, other), slope) - lse);
    sum.add(other, p * (dot(dout, value) - (simt::mutant(222) ? 0.f : delta)) * slope);
  }
  sum.write(a.dq.at(at.b, at.h, at.t), a.D, a.scale);
}

template <class S>
__global__ void __launch_bounds__(32 * kWarps) list_attention_bwd_keys_kernel(const ListArguments<S> a) {
  const Place at(a.B, a.K, a.N);
  if (!at.inside) return;
  const int group = a.H / a.K;
  Row k, v, dk{}, dv{}, q, dout;
  k.load(a.k.at(at.b, at.h, at.t), a.D);
  v.load(a.v.at(at.b, at.h, at.t), a.D);
  for (int h = at.h * group; h < (simt::mutant(223) ? at.h * group + 1 : (at.h + 1) * group); ++h) {
    const int64_t list = int64_t(at.b) * a.H + h;
    const int32_t *starts = a.starts + list * (a.N + 1) + at.t, *rows = a.rows + list * a.Q * a.slots;
    for (int32_t i = starts[0]; i < starts[1]; ++i) {
      const int t = rows[i];
      q.load(a.q.at(at.b, h, t), a.D);
      dout.load(a.dout.at(at.b, h, t), a.D);
      float slope;
      const float p = exp2f(logit(a, dot(q, k), slope) - a.lse[list * a.Q + t] * kLog2e);
      dk.add(q, p * (dot(dout, v) - a.delta[list * a.Q + t]) * slope);
      dv.add(dout, p);
    }
  }
  dk.write(a.dk.at(at.b, at.h, at.t), a.D, a.scale);
  dv.write(a.dv.at(at.b, at.h, at.t), a.D, 1.f);
}

template <class S>
ListArguments<S> arguments_of(const KeyLists& lists, double scale, double softcap, const ListAttentionTensors& io,
                              const ListAttentionGradients& grads, float* delta) {
  return {Rows<S>(io.q),
          Rows<S>(io.k),
          Rows<S>(io.v),
          Rows<S>(io.out),
          Rows<S>(grads.dout),
          Rows<S>(grads.dq),
          Rows<S>(grads.dk),
          Rows<S>(grads.dv),
          lists.indices,
          lists.starts,
          lists.rows,
          static_cast<float*>(io.lse),
          delta,
          static_cast<const float*>(grads.dlse),
          int(io.q.size[0]),
          int(io.q.size[1]),
          int(io.k.size[1]),
          int(io.q.size[2]),
          int(io.k.size[2]),
          int(io.q.size[3]),
          int(lists.slots),
          float(scale),
          float(softcap)};
}

void check(const KeyLists& lists, const ListAttentionTensors& io) {
  if (io.q.dtype == DType::kFloat64)
    throw std::invalid_argument("list_attention on CUDA takes float32, float16 and bfloat16, not float64");
  for (const View<4>* x : {&io.q, &io.k})
    if (x->size[0] * x->size[1] * x->size[2] > INT_MAX)
      throw std::invalid_argument("list_attention on CUDA takes fewer than 2^31 rows over batch and heads");
  if (io.q.size[2] * lists.slots > INT_MAX)
    throw std::invalid_argument("list_attention on CUDA takes fewer than 2^31 slots a head");
}

template <class F>
void of_dtype(DType dtype, F&& f) {
  if (dtype == DType::kBFloat16) return f(__nv_bfloat16());
  if (dtype == DType::kFloat16) return f(__half());
  f(float());
}

unsigned blocks(const View<4>& x) { return unsigned(ceil_div(x.size[0] * x.size[1] * x.size[2], kWarps)); }

}  // namespace

void list_attention_fwd_cuda(const KeyLists& lists, double scale, double softcap, const ListAttentionTensors& io,
                             const CudaContext& context) {
  check(lists, io);
  if (blocks(io.q) == 0) return;
  of_dtype(io.q.dtype, [&]<class S>(S) {
    simt::check(
        simt::launch(list_attention_fwd_kernel<S>, dim3(blocks(io.q)), dim3(32 * kWarps), 0,
                     static_cast<cudaStream_t>(context.stream), arguments_of<S>(lists, scale, softcap, io, {}, nullptr)),
        "list_attention_fwd");
  });
}

void list_attention_bwd_cuda(const KeyLists& lists, double scale, double softcap, const ListAttentionTensors& io,
                             const ListAttentionGradients& grads, const CudaContext& context) {
  check(lists, io);
  const int64_t rows = io.q.size[0] * io.q.size[1] * io.q.size[2];
  auto* delta =
      static_cast<float*>(context.workspace.get(context.workspace.self, (rows > 0 ? rows : 1) * int64_t(sizeof(float))));
  const auto stream = static_cast<cudaStream_t>(context.stream);
  of_dtype(io.q.dtype, [&]<class S>(S) {
    const auto args = arguments_of<S>(lists, scale, softcap, io, grads, delta);
    if (blocks(io.q) > 0)
      simt::check(simt::launch(list_attention_bwd_queries_kernel<S>, dim3(blocks(io.q)), dim3(32 * kWarps), 0, stream, args),
                  "list_attention_bwd (dQ)");
    if (blocks(io.k) > 0)
      simt::check(simt::launch(list_attention_bwd_keys_kernel<S>, dim3(blocks(io.k)), dim3(32 * kWarps), 0, stream, args),
                  "list_attention_bwd (dK, dV)");
  });
}

}  // namespace longspan::kernels
