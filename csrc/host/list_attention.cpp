// longspan.kernels.list_attention_fwd, list_attention_bwd and list_transpose on plain arrays.
#include "kernels/list_attention/list_attention.h"

#include <climits>
#include <cmath>

#include "host/arguments.h"
#include "host/bind.h"
#include "host/device.h"

namespace longspan::host {
namespace {

const int32_t* numbers(const Array& x, const std::string& name) {
  check_contiguous(x, name);
  return static_cast<const int32_t*>(x.data);
}

/// The arrays of one call, checked against each other.
struct Call {
  Array q, k, v, indices;
  Arguments others;
  kernels::View<4> queries, keys;
  kernels::DType dtype;

  Call(const py::handle& q_, const py::handle& k_, const py::handle& v_, const py::handle& indices_, Stream stream)
      : q(borrow(q_, "q", stream)), others(q, "q", stream), queries(view_of<4>(q, "q")), dtype(queries.dtype) {
    k = borrow(k_, "k", stream);
    check_device(k, "k", q, "q");
    keys = view_of<4>(k, "k");
    v = others.input(v_, "v", k.shape, dtype);
    if (k.dtype != q.dtype || keys.size[0] != queries.size[0] || keys.size[3] != queries.size[3] || keys.size[1] < 1 ||
        queries.size[1] % keys.size[1] || queries.size[3] < 1 || queries.size[3] > 256)
      throw py::value_error("k must be of the dtype, batch and head dimension (1 to 256) of q, its heads divide those of q");
    indices = borrow(indices_, "indices", "int32", 4, stream);
    check_device(indices, "indices", q, "q");
    for (int i = 0; i < 3; ++i)
      if (indices.shape[i] != queries.size[i]) throw py::value_error("indices must be int32 [B,H,T,L] for q [B,H,T,D]");
    if (indices.shape[2] * indices.shape[3] > INT_MAX) throw py::value_error("indices have more than 2^31 slots a head");
  }
  std::vector<int64_t> rows() const { return {queries.size[0], queries.size[1], queries.size[2]}; }
  kernels::KeyLists lists() const { return {numbers(indices, "indices"), indices.shape[3]}; }
  double scale(const py::object& given) const {
    return given.is_none() ? 1 / std::sqrt(double(queries.size[3])) : given.cast<double>();
  }
};

py::tuple list_attention_fwd(const py::handle& q, const py::handle& k, const py::handle& v, const py::handle& indices,
                             const py::object& scale, double softcap, int threads, const py::object& out_,
                             const py::object& lse_, int64_t stream) {
  const Call call(q, k, v, indices, stream);
  const Output out = call.others.output(out_, "out", call.q.shape, call.dtype);
  const Output lse = call.others.output(lse_, "lse", call.rows(), kernels::statistics_dtype(call.dtype));
  check_contiguous(lse.array, "lse");
  const kernels::ListAttentionTensors io{call.queries, call.keys, view_of<4>(call.v, "v"), view_of<4>(out.array, "out"),
                                         lse.array.data};
  const kernels::KeyLists lists = call.lists();
  const double factor = call.scale(scale);
  run_on(
      call.q, threads, stream,
      [&](const auto& context) { kernels::list_attention_fwd_cpu(lists, factor, softcap, io, context); },
      [&](const auto& context) {
        LONGSPAN_CUDA_ENTRY(kernels::list_attention_fwd_cuda(lists, factor, softcap, io, context));
      });
  return py::make_tuple(out.object, lse.object);
}

py::tuple list_attention_bwd(const py::handle& dout_, const py::handle& q, const py::handle& k, const py::handle& v,
                             const py::handle& out_, const py::handle& lse_, const py::handle& indices,
                             const py::handle& starts_, const py::handle& rows_, const py::object& scale, double softcap,
                             int threads, const py::object& dlse_, const py::object& dq_, const py::object& dk_,
                             const py::object& dv_, int64_t stream) {
  const Call call(q, k, v, indices, stream);
  const kernels::DType statistics = kernels::statistics_dtype(call.dtype);
  const Arguments& others = call.others;
  const Array dout = others.input(dout_, "dout", call.q.shape, call.dtype),
              out = others.input(out_, "out", call.q.shape, call.dtype);
  const Array lse = others.input(lse_, "lse", call.rows(), statistics),
              dlse = others.optional_input(dlse_, "dlse", call.rows(), statistics);
  const int64_t B = call.queries.size[0], H = call.queries.size[1], T = call.queries.size[2], S = call.keys.size[2];
  const Array starts = others.input(starts_, "starts", {B, H, S + 1}, "int32"),
              rows = others.input(rows_, "rows", {B, H, T * call.indices.shape[3]}, "int32");
  check_contiguous(lse, "lse");
  if (dlse.data) check_contiguous(dlse, "dlse");
  const Output dq = others.output(dq_, "dq", call.q.shape, call.dtype),
               dk = others.output(dk_, "dk", call.k.shape, call.dtype),
               dv = others.output(dv_, "dv", call.k.shape, call.dtype);
  kernels::KeyLists lists = call.lists();
  lists.starts = numbers(starts, "starts"), lists.rows = numbers(rows, "rows");
  const kernels::ListAttentionTensors io{call.queries, call.keys, view_of<4>(call.v, "v"), view_of<4>(out, "out"), lse.data};
  const kernels::ListAttentionGradients grads{view_of<4>(dout, "dout"), view_of<4>(dq.array, "dq"),
                                              view_of<4>(dk.array, "dk"), view_of<4>(dv.array, "dv"), dlse.data};
  const double factor = call.scale(scale);
  run_on(
      call.q, threads, stream,
      [&](const auto& context) { kernels::list_attention_bwd_cpu(lists, factor, softcap, io, grads, context); },
      [&](const auto& context) {
        LONGSPAN_CUDA_ENTRY(kernels::list_attention_bwd_cuda(lists, factor, softcap, io, grads, context));
      });
  return py::make_tuple(dq.object, dk.object, dv.object);
}

py::tuple list_transpose(const py::handle& indices_, int64_t keys, int threads, const py::object& starts_,
                         const py::object& rows_, int64_t stream) {
  const Array indices = borrow(indices_, "indices", "int32", 4, stream);
  const int32_t* from = numbers(indices, "indices");
  const int64_t B = indices.shape[0], H = indices.shape[1], T = indices.shape[2], L = indices.shape[3];
  if (keys < 0 || T * L > INT_MAX) throw py::value_error("keys must not be negative, and a head have fewer than 2^31 slots");
  const Arguments others(indices, "indices", stream);
  const Output starts = others.output(starts_, "starts", {B, H, keys + 1}, "int32"),
               rows = others.output(rows_, "rows", {B, H, T * L}, "int32");
  check_contiguous(starts.array, "starts");
  check_contiguous(rows.array, "rows");
  const kernels::ListShape shape{B * H, T, L, keys};
  auto *start = static_cast<int32_t*>(starts.array.data), *row = static_cast<int32_t*>(rows.array.data);
  run_on(
      indices, threads, stream, [&](const auto& context) { kernels::list_transpose_cpu(shape, from, start, row, context); },
      [&](const auto& context) { LONGSPAN_CUDA_ENTRY(kernels::list_transpose_cuda(shape, from, start, row, context)); });
  return py::make_tuple(starts.object, rows.object);
}

}  // namespace

void bind_list_attention(py::module_& m) {
  m.def("list_attention_fwd", &list_attention_fwd, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("indices"),
        py::kw_only(), py::arg("scale") = py::none(), py::arg("softcap") = 0.0, py::arg("threads") = 0,
        py::arg("out") = py::none(), py::arg("lse") = py::none(), py::arg("stream") = 1,
        R"(Attention of each query over a list of keys: (out [B,H,T,D], lse [B,H,T]).

q [B,H,T,D]; k, v [B,K,S,D]; indices int32 [B,H,T,L], increasing, -1 behind the last. Memory, streams, out and lse as in
attention_fwd.)");
  m.def("list_attention_bwd", &list_attention_bwd, py::arg("dout"), py::arg("q"), py::arg("k"), py::arg("v"), py::arg("out"),
        py::arg("lse"), py::arg("indices"), py::arg("starts"), py::arg("rows"), py::kw_only(), py::arg("scale") = py::none(),
        py::arg("softcap") = 0.0, py::arg("threads") = 0, py::arg("dlse") = py::none(), py::arg("dq") = py::none(),
        py::arg("dk") = py::none(), py::arg("dv") = py::none(), py::arg("stream") = 1,
        "Its backward (dq, dk, dv); starts and rows are those of list_transpose(indices, S).");
  m.def(
      "list_transpose", &list_transpose, py::arg("indices"), py::arg("keys"), py::kw_only(), py::arg("threads") = 0,
      py::arg("starts") = py::none(), py::arg("rows") = py::none(), py::arg("stream") = 1,
      "The queries that have each key, increasing: (starts int32 [B,H,keys+1], rows int32 [B,H,T*L], -1 behind the last).");
}

}  // namespace longspan::host
