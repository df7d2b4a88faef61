// list_attention_fwd(q [B,H,T,W], k, v [B,K,S,W], D, indices [B,H,T,L], scale, softcap) -> out, lse
// list_attention_bwd(..., dout, out, lse, dlse, starts, rows) -> dq, dk, dv
// list_transpose(indices, keys) -> starts, rows
#include "list_attention/list_attention.h"

#include "simt/entries/dtype.h"
#include "simt/entry.h"

namespace simt {
namespace {

using namespace longspan::kernels;

/// Arrays [B,heads,tokens,D] whose rows are W apart.
struct ListCall {
  Device& device;
  const py::dict& arguments;
  DType dtype = dtype_named(value<std::string>(arguments, "dtype"));

  View<4> view(void* data, const Shape& s) const {
    return {data,
            dtype,
            {s.at(0), s.at(1), s.at(2), value<int64_t>(arguments, "D")},
            {s[1] * s[2] * s[3], s[2] * s[3], s[3], 1}};
  }
  View<4> in(const char* name) const {
    return view(input_bytes(device, arguments, name, size_t(element_size(dtype))), shape(arguments, name));
  }
  View<4> out(const char* name, const char* like) const {
    const Shape s = shape(arguments, like);
    return view(output_bytes(device, name, s, numpy_name(dtype)), s);
  }
  KeyLists lists() const { return {input<int32_t>(device, arguments, "indices"), shape(arguments, "indices").at(3)}; }
  double scale() const { return value<double>(arguments, "scale"); }
  double softcap() const { return value_or(arguments, "softcap", 0.0); }
  CudaContext context() const {
    return {
        nullptr,
        {&device, [](void* self, int64_t bytes) { return static_cast<Device*>(self)->scratch("scratch", size_t(bytes)); }},
        {}};
  }
};

py::dict list_attention_fwd(Device& device, const py::dict& arguments) {
  const ListCall call{device, arguments};
  const Shape q = shape(arguments, "q");
  const ListAttentionTensors io{call.in("q"), call.in("k"), call.in("v"), call.out("out", "q"),
                                output<float>(device, "lse", {q.at(0), q.at(1), q.at(2)}, "float32")};
  list_attention_fwd_cuda(call.lists(), call.scale(), call.softcap(), io, call.context());
  return {};
}
SIMT_ENTRY(list_attention_fwd);

py::dict list_attention_bwd(Device& device, const py::dict& arguments) {
  const ListCall call{device, arguments};
  const ListAttentionTensors io{call.in("q"), call.in("k"), call.in("v"), call.in("out"),
                                input<float>(device, arguments, "lse")};
  const ListAttentionGradients grads{call.in("dout"), call.out("dq", "q"), call.out("dk", "k"), call.out("dv", "k"),
                                     given(arguments, "dlse") ? input<float>(device, arguments, "dlse") : nullptr};
  KeyLists lists = call.lists();
  lists.starts = input<int32_t>(device, arguments, "starts"), lists.rows = input<int32_t>(device, arguments, "rows");
  list_attention_bwd_cuda(lists, call.scale(), call.softcap(), io, grads, call.context());
  return {};
}
SIMT_ENTRY(list_attention_bwd);

py::dict list_transpose(Device& device, const py::dict& arguments) {
  const Shape s = shape(arguments, "indices");
  const int64_t keys = value<int64_t>(arguments, "keys");
  list_transpose_cuda({s.at(0) * s.at(1), s.at(2), s.at(3), keys}, input<int32_t>(device, arguments, "indices"),
                      output<int32_t>(device, "starts", {s[0], s[1], keys + 1}, "int32"),
                      output<int32_t>(device, "rows", {s[0], s[1], s[2] * s[3]}, "int32"), {});
  return {};
}
SIMT_ENTRY(list_transpose);

}  // namespace
}  // namespace simt
