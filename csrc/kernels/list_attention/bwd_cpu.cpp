// Attention over lists of keys, backward; see list_attention.h.
#include "list_attention/rows.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {
namespace {

template <class S>
struct Backward {
  using T = Compute<S>;
  const KeyLists& lists;
  double scale, softcap;
  const ListAttentionTensors& io;
  const ListAttentionGradients& grads;
  const Context& context;
  const int64_t B = io.q.size[0], H = io.q.size[1], Q = io.q.size[2], D = io.q.size[3];
  const int64_t K = io.k.size[1], N = io.k.size[2], group = H / K, padded = round_up(D, kLanes<T>);
  const WideRows<T> q = WideRows<T>::template of<S>(io.q, context), k = WideRows<T>::template of<S>(io.k, context),
                    v = WideRows<T>::template of<S>(io.v, context), dout = WideRows<T>::template of<S>(grads.dout, context);
  T* delta = scratch(B * H * Q);  // <dout, out> - dlse

  T* scratch(int64_t count) const {
    return static_cast<T*>(context.workspace.get(context.workspace.self, std::max<int64_t>(1, count) * int64_t(sizeof(T))));
  }
  T factor() const { return T(softcap > 0 ? scale / softcap : scale * kLog2e); }

  /// Products x to probabilities and dp to ds / scale, of pairs whose rows' statistics are lse (natural) and delta.
  void pairs(int64_t count, T* x, T* dp, T* slope, const auto& lse_of, const auto& delta_of) const {
    const T scaled = factor();
    for (int64_t i = 0; i < count; ++i) x[i] *= scaled;
    for (int64_t i = count; i < round_up(count, kLanes<T>); ++i) x[i] = T(0);
    if (softcap > 0) cap_row<T>(T(softcap), count, x, slope);
    for (int64_t i = 0; i < count; ++i) x[i] = T(double(x[i]) - double(lse_of(i)) * kLog2e);
    for (int64_t i = 0; i < count; i += kLanes<T>) store(x + i, exp2<T>(load(x + i)));
    for (int64_t i = 0; i < count; ++i) {
      const T ds = x[i] * (dp[i] - delta_of(i));
      dp[i] = softcap > 0 ? ds * slope[i] : ds;
    }
  }

  void queries() const {
    const int64_t tiles = ceil_div(Q, kListTile), wide = round_up(lists.slots, kLanes<T>), per_worker = padded + 3 * wide;
    T* memory = scratch(per_worker * context.parallel.workers);
    parallel_for(context, B * H * tiles, [&](int64_t task, int worker) {
      T *sum = memory + worker * per_worker, *p = sum + padded, *dp = p + wide, *slope = dp + wide;
      const int64_t bh = task % (B * H), b = bh / H, h = bh % H, first = (tiles - 1 - task / (B * H)) * kListTile;
      for (int64_t t = first; t < std::min(Q, first + kListTile); ++t) {
        const S *g = row_at<const S>(grads.dout, b, h, t), *o = row_at<const S>(io.out, b, h, t);
        T along = grads.dlse ? -static_cast<const T*>(grads.dlse)[bh * Q + t] : T(0);
        for (int64_t d = 0; d < D; ++d) along += load_as<T>(g + d) * load_as<T>(o + d);
        delta[bh * Q + t] = along;
        const int32_t* list = lists.indices + (bh * Q + t) * lists.slots;
        const int64_t count = list_length(list, lists.slots);
        const T lse = static_cast<const T*>(io.lse)[bh * Q + t];
        gathered_products<T>(q.at(b, h) + t * q.row, k.at(b, h / group), k.row, padded, list, count, p);
        gathered_products<T>(dout.at(b, h) + t * dout.row, v.at(b, h / group), v.row, padded, list, count, dp);
        pairs(count, p, dp, slope, [&](int64_t) { return lse; }, [&](int64_t) { return along; });
        gathered_sum<T>(dp, k.at(b, h / group), k.row, padded, list, count, sum);
        S* dq = row_at<S>(grads.dq, b, h, t);
        for (int64_t d = 0; d < D; ++d) store_as<T>(dq + d, sum[d] * T(scale));
      }
    });
  }

  void keys() const {
    const int64_t tiles = ceil_div(N, kListTile), wide = round_up(Q, kLanes<T>), per_worker = 4 * padded + 3 * wide;
    T* memory = scratch(per_worker * context.parallel.workers);
    parallel_for(context, B * K * tiles, [&](int64_t task, int worker) {
      T *part = memory + worker * per_worker, *dk_sum = part + padded, *dv_sum = dk_sum + padded;
      T *p = dv_sum + 2 * padded, *dp = p + wide, *slope = dp + wide;
      const int64_t bk = task % (B * K), b = bk / K, kv = bk % K, first = task / (B * K) * kListTile;
      for (int64_t j = first; j < std::min(N, first + kListTile); ++j) {
        std::fill(dk_sum, dk_sum + 2 * padded, T(0));
        for (int64_t h = kv * group; h < (kv + 1) * group; ++h) {
          const int32_t* starts = lists.starts + (b * H + h) * (N + 1) + j;
          const int32_t* rows = lists.rows + (b * H + h) * Q * lists.slots + starts[0];
          const int64_t count = starts[1] - starts[0];
          const T *lse = static_cast<const T*>(io.lse) + (b * H + h) * Q, *along = delta + (b * H + h) * Q;
          gathered_products<T>(k.at(b, kv) + j * k.row, q.at(b, h), q.row, padded, rows, count, p);
          gathered_products<T>(v.at(b, kv) + j * v.row, dout.at(b, h), dout.row, padded, rows, count, dp);
          pairs(count, p, dp, slope, [&](int64_t i) { return lse[rows[i]]; }, [&](int64_t i) { return along[rows[i]]; });
          gathered_sum<T>(dp, q.at(b, h), q.row, padded, rows, count, part);
          for (int64_t d = 0; d < padded; ++d) dk_sum[d] += part[d];
          gathered_sum<T>(p, dout.at(b, h), dout.row, padded, rows, count, part);
          for (int64_t d = 0; d < padded; ++d) dv_sum[d] += part[d];
        }
        S *dk = row_at<S>(grads.dk, b, kv, j), *dv = row_at<S>(grads.dv, b, kv, j);
        for (int64_t d = 0; d < D; ++d) store_as<T>(dk + d, dk_sum[d] * T(scale)), store_as<T>(dv + d, dv_sum[d]);
      }
    });
  }
};

}  // namespace

void list_attention_bwd(const KeyLists& lists, double scale, double softcap, const ListAttentionTensors& io,
                        const ListAttentionGradients& grads, const Context& context) {
  const auto run = [&](const auto& backward) { backward.queries(), backward.keys(); };
  switch (io.q.dtype) {
    case DType::kFloat32: return run(Backward<float>{lists, scale, softcap, io, grads, context});
    case DType::kFloat64: return run(Backward<double>{lists, scale, softcap, io, grads, context});
    case DType::kBFloat16: return run(Backward<bfloat16>{lists, scale, softcap, io, grads, context});
    case DType::kFloat16: return;  // dispatch_cpu.cpp refuses it
  }
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
