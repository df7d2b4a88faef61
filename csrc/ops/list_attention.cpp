// torch ops longspan::list_attention_fwd, list_attention_bwd and list_transpose: check, allocate, launch.
#include "kernels/list_attention/list_attention.h"

#include <climits>
#include <tuple>

#include "ops/cuda.h"
#include "ops/tensor.h"

namespace longspan::ops {
namespace {

/// Where an op runs.
struct Cpu {
  using Context = TorchContext;
  template <class... Arguments>
  static void fwd(const Arguments&... arguments) {
    kernels::list_attention_fwd_cpu(arguments...);
  }
  template <class... Arguments>
  static void bwd(const Arguments&... arguments) {
    kernels::list_attention_bwd_cpu(arguments...);
  }
  template <class... Arguments>
  static void transpose(const Arguments&... arguments) {
    kernels::list_transpose_cpu(arguments...);
  }
};

#ifdef LONGSPAN_WITH_CUDA
struct Cuda {
  using Context = TorchCudaContext;
  template <class... Arguments>
  static void fwd(const Arguments&... arguments) {
    kernels::list_attention_fwd_cuda(arguments...);
  }
  template <class... Arguments>
  static void bwd(const Arguments&... arguments) {
    kernels::list_attention_bwd_cuda(arguments...);
  }
  template <class... Arguments>
  static void transpose(const Arguments&... arguments) {
    kernels::list_transpose_cuda(arguments...);
  }
};
#endif

const int32_t* numbers(const Tensor& x, const char* what) {
  STD_TORCH_CHECK(x.is_contiguous() && x.scalar_type() == ScalarType::Int, "longspan::list_attention: ", what,
                  " must be contiguous int32");
  return static_cast<const int32_t*>(x.const_data_ptr());
}

kernels::KeyLists lists_of(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& indices) {
  STD_TORCH_CHECK(q.dim() == 4 && k.dim() == 4 && v.dim() == 4 && indices.dim() == 4 && q.size(0) == k.size(0) &&
                      q.size(3) == k.size(3) && q.size(3) >= 1 && q.size(3) <= 256 && k.size(1) > 0 &&
                      q.size(1) % k.size(1) == 0 && q.scalar_type() == k.scalar_type() && q.scalar_type() == v.scalar_type(),
                  "longspan::list_attention: q [B,H,T,D] and k, v [B,K,S,D] do not fit");
  for (int i = 0; i < 4; ++i) STD_TORCH_CHECK(k.size(i) == v.size(i), "longspan::list_attention: k and v differ in shape");
  for (int i = 0; i < 3; ++i)
    STD_TORCH_CHECK(indices.size(i) == q.size(i), "longspan::list_attention: indices must be [B,H,T,L]");
  STD_TORCH_CHECK(q.size(2) * indices.size(3) <= INT_MAX, "longspan::list_attention: more than 2^31 slots a head");
  return {numbers(indices, "indices"), indices.size(3)};
}

template <class Device>
std::tuple<Tensor, Tensor> list_attention_fwd(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& indices,
                                              double scale, double softcap) {
  const kernels::KeyLists lists = lists_of(q, k, v, indices);
  Tensor out = new_heads_last(q);
  Tensor lse = torch::stable::new_empty(q, {q.size(0), q.size(1), q.size(2)}, statistics_type(q));
  typename Device::Context context(q);
  Device::fwd(
      lists, scale, softcap,
      kernels::ListAttentionTensors{view_of<4>(q), view_of<4>(k), view_of<4>(v), view_of<4>(out), lse.mutable_data_ptr()},
      context.context());
  return {out, lse};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor> list_attention_bwd(const Tensor& dout, std::optional<Tensor> dlse, const Tensor& q,
                                                      const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& lse,
                                                      const Tensor& indices, const Tensor& starts, const Tensor& rows,
                                                      double scale, double softcap) {
  kernels::KeyLists lists = lists_of(q, k, v, indices);
  lists.starts = numbers(starts, "starts"), lists.rows = numbers(rows, "rows");
  STD_TORCH_CHECK(starts.dim() == 3 && starts.size(2) == k.size(2) + 1 && rows.dim() == 3 &&
                      rows.size(2) == q.size(2) * indices.size(3) && starts.size(1) == q.size(1) &&
                      rows.size(1) == q.size(1) && starts.size(0) == q.size(0) && rows.size(0) == q.size(0),
                  "longspan::list_attention: starts must be [B,H,S+1] and rows [B,H,T*L]");
  STD_TORCH_CHECK(lse.is_contiguous() && (!dlse || dlse->is_contiguous()),
                  "longspan::list_attention: lse must be contiguous");
  Tensor dq = new_heads_last(q), dk = new_heads_last(k), dv = new_heads_last(v);
  typename Device::Context context(q);
  Device::bwd(
      lists, scale, softcap,
      kernels::ListAttentionTensors{view_of<4>(q), view_of<4>(k), view_of<4>(v), view_of<4>(out),
                                    const_cast<void*>(lse.const_data_ptr())},
      kernels::ListAttentionGradients{view_of<4>(dout), view_of<4>(dq), view_of<4>(dk), view_of<4>(dv), data_or_null(dlse)},
      context.context());
  return {dq, dk, dv};
}

template <class Device>
std::tuple<Tensor, Tensor> list_transpose(const Tensor& indices, int64_t keys) {
  STD_TORCH_CHECK(indices.dim() == 4 && keys >= 0 && indices.size(2) * indices.size(3) <= INT_MAX,
                  "longspan::list_transpose: indices must be [B,H,T,L] of fewer than 2^31 slots a head");
  const int64_t B = indices.size(0), H = indices.size(1), T = indices.size(2), L = indices.size(3);
  const int32_t* from = numbers(indices, "indices");
  Tensor starts = torch::stable::new_empty(indices, {B, H, keys + 1}),
         rows = torch::stable::new_empty(indices, {B, H, T * L});
  typename Device::Context context(indices);
  Device::transpose(kernels::ListShape{B * H, T, L, keys}, from, static_cast<int32_t*>(starts.mutable_data_ptr()),
                    static_cast<int32_t*>(rows.mutable_data_ptr()), context.context());
  return {starts, rows};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(longspan, CPU, m) {
  m.impl("list_attention_fwd", TORCH_BOX(&list_attention_fwd<Cpu>));
  m.impl("list_attention_bwd", TORCH_BOX(&list_attention_bwd<Cpu>));
  m.impl("list_transpose", TORCH_BOX(&list_transpose<Cpu>));
}

#ifdef LONGSPAN_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(longspan, CUDA, m) {
  m.impl("list_attention_fwd", TORCH_BOX(&list_attention_fwd<Cuda>));
  m.impl("list_attention_bwd", TORCH_BOX(&list_attention_bwd<Cuda>));
  m.impl("list_transpose", TORCH_BOX(&list_transpose<Cuda>));
}
#endif

}  // namespace longspan::ops
