#pragma once
// What the backward of attention does on rows and tiles of scores. Only for per-ISA sources.
#include "attention/tile.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {

inline constexpr int kBlock = kKeyTile;  // rows of a task that only passes over them

/// Where gradients are summed: the outputs themselves, or float arrays when the outputs are bfloat16.
template <class T>
struct Accumulator {
  T* data;
  int64_t stride[3];

  template <class S>
  static Accumulator of(const View<4>& out, const Context& context) {
    if constexpr (sizeof(S) == sizeof(T)) {
      return {static_cast<T*>(out.data), {out.stride[0], out.stride[1], out.stride[2]}};
    } else {
      const int64_t d = out.size[3], t = out.size[2] * d, h = out.size[1] * t;
      return {static_cast<T*>(context.workspace.get(context.workspace.self, out.size[0] * h * int64_t(sizeof(T)))),
              {h, t, d}};
    }
  }
  T* row(int64_t b, int64_t h, int64_t t) const { return data + b * stride[0] + h * stride[1] + t * stride[2]; }

  void clear(const View<4>& out, const Context& context) const {
    const int64_t rows = out.size[2], chunks = ceil_div(rows, kBlock);
    parallel_for(context, out.size[0] * out.size[1] * chunks, [&](int64_t task, int) {
      const int64_t b = task / chunks / out.size[1], h = task / chunks % out.size[1], first = task % chunks * kBlock;
      for (int64_t t = first; t < rows && t < first + kBlock; ++t) std::memset(row(b, h, t), 0, out.size[3] * sizeof(T));
    });
  }

  template <class S>
  void write(const View<4>& out, const Context& context) const {
    if constexpr (sizeof(S) != sizeof(T)) {
      parallel_for(context, out.size[0] * out.size[1], [&](int64_t task, int) {
        const int64_t b = task / out.size[1], h = task % out.size[1];
        for (int64_t t = 0; t < out.size[2]; ++t)
          for (int64_t d = 0; d < out.size[3]; ++d) store_as<T>(row_of<S>(out, b, h, t) + d, row(b, h, t)[d]);
      });
    }
  }
};

/// to[r, d] += from[r, d] * factor over dim columns of padded rows.
template <class T>
void add_rows(const T* from, int64_t padded, int64_t count, int64_t dim, T factor, T* to, int64_t stride) {
  for (int64_t r = 0; r < count; ++r)
    for (int64_t d = 0; d < dim; ++d) to[r * stride + d] += from[r * padded + d] * factor;
}

/// Probabilities from base-2 logits, then dscores = P * (dP - delta + dlse), in place of dP.
template <class T>
void softmax_gradient(const Columns& columns, int64_t count, const T* lse, const T* delta, const T* dlse, const T* slope,
                      T* probabilities, T* dscores) {
  for (int64_t i = 0; i < count; ++i) {
    // In base 2 and in two parts: one rounding of the product would shift a whole row of probabilities.
    const double base2 = lse[i] == kMinusInfinity<T> ? 0.0 : double(lse[i]) * 1.4426950408889634074;
    const T top = T(base2), rest = T(base2 - double(top)), extra = dlse ? dlse[i] : T(0);
    T *p = probabilities + i * kScoreStride, *ds = dscores + i * kScoreStride;
    for (int c = columns.first; c < columns.last; c += kLanes<T>) {
      const Vec<T> x = exp2<T>((load(p + c) - top) - rest);
      Vec<T> g = x * ((load(ds + c) - delta[i]) + extra);
      if (slope) g *= load(slope + i * kScoreStride + c);
      store(p + c, x);
      store(ds + c, g);
    }
  }
}

/// delta[b,h,t] = <dout, out>, summed as block_gemm sums dP, so that a row that sees one key gets exactly dP - delta = 0
template <class S>
void row_products(const AttentionTensors& io, const AttentionGradients& grads, const Context& context, Compute<S>* delta) {
  using T = Compute<S>;
  const int64_t B = io.q.size[0], H = io.q.size[1], Q = io.q.size[2], D = io.q.size[3];
  const int64_t chunks = ceil_div(Q, kBlock);
  parallel_for(context, B * H * chunks, [&](int64_t task, int) {
    const int64_t bh = task / chunks, b = bh / H, h = bh % H, first = task % chunks * kBlock;
    for (int64_t t = first; t < Q && t < first + kBlock; ++t) {
      const S *g = row_of<const S>(grads.dout, b, h, t), *o = row_of<const S>(io.out, b, h, t);
      T sum = T(0);
      for (int64_t begin = 0; begin < D; begin += kChain) {
        T part = T(0);
        for (int64_t d = begin; d < D && d < begin + kChain; ++d)
          part = multiply_add(load_as<T>(g + d), load_as<T>(o + d), part);
        sum += part;
      }
      delta[bh * Q + t] = sum;
    }
  });
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
