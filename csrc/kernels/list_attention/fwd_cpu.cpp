// Attention over lists of keys, forward; see list_attention.h.
#include "list_attention/rows.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {
namespace {

template <class S>
void forward(const KeyLists& lists, double scale, double softcap, const ListAttentionTensors& io, const Context& context) {
  using T = Compute<S>;
  const int64_t B = io.q.size[0], H = io.q.size[1], Q = io.q.size[2], D = io.q.size[3], group = H / io.k.size[1];
  const int64_t padded = round_up(D, kLanes<T>), wide = round_up(lists.slots, kLanes<T>), tiles = ceil_div(Q, kListTile);
  const auto k = WideRows<T>::template of<S>(io.k, context), v = WideRows<T>::template of<S>(io.v, context);
  const T factor = T(softcap > 0 ? scale / softcap : scale * kLog2e);
  const int64_t per_worker = 2 * padded + wide;
  T* memory =
      static_cast<T*>(context.workspace.get(context.workspace.self, per_worker * context.parallel.workers * sizeof(T)));
  parallel_for(context, B * H * tiles, [&](int64_t task, int worker) {
    T *q = memory + worker * per_worker, *sum = q + padded, *p = sum + padded;
    const int64_t bh = task % (B * H), b = bh / H, h = bh % H, first = (tiles - 1 - task / (B * H)) * kListTile;
    const T *keys = k.at(b, h / group), *values = v.at(b, h / group);
    for (int64_t t = first; t < std::min(Q, first + kListTile); ++t) {
      const int32_t* list = lists.indices + (bh * Q + t) * lists.slots;
      const int64_t count = list_length(list, lists.slots);
      widen<T>(row_at<const S>(io.q, b, h, t), D, padded, factor, q);
      gathered_products<T>(q, keys, k.row, padded, list, count, p);
      for (int64_t i = count; i < round_up(count, kLanes<T>); ++i) p[i] = T(0);
      if (softcap > 0) cap_row<T>(T(softcap), count, p, nullptr);
      T top = kMinusInfinity<T>;
      for (int64_t i = 0; i < count; ++i) top = p[i] > top ? p[i] : top;
      T total = T(0);
      for (int64_t i = 0; i < count; i += kLanes<T>) store(p + i, exp2<T>(load(p + i) - top));
      for (int64_t i = 0; i < count; ++i) total += p[i];
      gathered_sum<T>(p, values, v.row, padded, list, count, sum);
      const T share = count ? T(1) / total : T(0);
      S* out = row_at<S>(io.out, b, h, t);
      for (int64_t d = 0; d < D; ++d) store_as<T>(out + d, sum[d] * share);
      static_cast<T*>(io.lse)[bh * Q + t] = count ? T(double(top) / kLog2e + std::log(double(total))) : kMinusInfinity<T>;
    }
  });
}

}  // namespace

void list_attention_fwd(const KeyLists& lists, double scale, double softcap, const ListAttentionTensors& io,
                        const Context& context) {
  switch (io.q.dtype) {
    case DType::kFloat32: return forward<float>(lists, scale, softcap, io, context);
    case DType::kFloat64: return forward<double>(lists, scale, softcap, io, context);
    case DType::kBFloat16: return forward<bfloat16>(lists, scale, softcap, io, context);
    case DType::kFloat16: return;  // dispatch_cpu.cpp refuses it
  }
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
