// longspan.kernels.attention_fwd and attention_bwd: the attention kernels on plain arrays.
#include "kernels/attention/attention.h"

#include <pybind11/stl.h>

#include <cmath>
#include <optional>

#include "host/array.h"
#include "host/bind.h"
#include "host/pool.h"

namespace longspan::host {
namespace {

using kernels::PatternKind;

/// Attention's description for calls without torch; owns the arrays that the kernel's spec points to.
struct Spec {
  kernels::AttentionSpec spec;
  Array tiles, query_layout, key_layout;
};

PatternKind kind_of(const std::string& name) {
  if (name == "full") return PatternKind::kFull;
  if (name == "s2") return PatternKind::kShiftedGroups;
  if (name == "window") return PatternKind::kWindow;
  if (name == "tiles") return PatternKind::kTiles;
  throw py::value_error("pattern is '" + name + "'; allowed: full, s2, window, tiles");
}

void set_layout(const py::object& object, const char* name, Array& keep, kernels::Layout& layout) {
  if (object.is_none()) return;
  keep = borrow(object, name, "int32", 3);
  if (!keep.contiguous() || keep.shape[0] < 2 || keep.shape[0] > 3)
    throw py::value_error(std::string(name) +
                          " must be a contiguous int32 array [2 or 3, 1 or B, length]: doc, pos and maybe flag");
  const auto* data = static_cast<const int32_t*>(keep.data);
  const int64_t plane = keep.shape[1] * keep.shape[2];
  layout = {data, data + plane, keep.shape[0] == 3 ? data + 2 * plane : nullptr, keep.shape[1] == 1 ? 0 : keep.shape[2]};
}

Spec make_spec(const std::string& pattern, bool causal, int group_size, int window, int sinks, int model_window,
               const py::object& tiles, int tile_size, const py::object& query_layout, const py::object& key_layout,
               std::optional<double> scale, double softcap) {
  Spec out;
  kernels::Pattern& p = out.spec.pattern;
  p.kind = kind_of(pattern);
  p.causal = causal, p.sinks = sinks, p.model_window = model_window;
  if (sinks < 0 || model_window < 0) throw py::value_error("sinks and model_window must not be negative");
  if (p.kind != PatternKind::kFull && !causal) throw py::value_error("pattern '" + pattern + "' is causal only");
  if (p.kind == PatternKind::kShiftedGroups) {
    if (group_size < 2 || group_size % 2)
      throw py::value_error("group_size is " + std::to_string(group_size) + "; it must be even and at least 2");
    p.group_size = group_size;
  }
  if (p.kind == PatternKind::kWindow) {
    if (window < 1) throw py::value_error("window is " + std::to_string(window) + "; it must be at least 1");
    p.window = window;
  }
  if (p.kind == PatternKind::kTiles) {
    out.tiles = borrow(tiles, "tiles", "int32", 3);
    if (!out.tiles.contiguous()) throw py::value_error("tiles must be contiguous");
    if (tile_size < 1 || tile_size % kernels::kKeyTile)
      throw py::value_error("tile_size is " + std::to_string(tile_size) + "; it must be a multiple of " +
                            std::to_string(kernels::kKeyTile));
    p.tile_size = tile_size, p.tiles = static_cast<const int32_t*>(out.tiles.data);
    p.tile_heads = out.tiles.shape[0], p.query_tiles = out.tiles.shape[1], p.tile_slots = out.tiles.shape[2];
  }
  set_layout(query_layout, "query_layout", out.query_layout, out.spec.queries);
  set_layout(key_layout, "key_layout", out.key_layout, out.spec.keys);
  out.spec.scale = scale.value_or(0);
  out.spec.softcap = softcap;
  return out;
}

/// The arrays of one call, checked against each other and the spec.
struct Call {
  Array q, k, v;
  kernels::AttentionSpec spec;
  int64_t B, H, T, D;

  Call(const py::handle& q_, const py::handle& k_, const py::handle& v_, const Spec& given)
      : q(borrow(q_, "q")), k(borrow(k_, "k")), v(borrow(v_, "v")), spec(given.spec) {
    const auto view = kernels::View<4>(view_of<4>(q, "q"));
    view_of<4>(k, "k");
    view_of<4>(v, "v");
    B = view.size[0], H = view.size[1], T = view.size[2], D = view.size[3];
    if (k.shape != v.shape) throw py::value_error("k and v differ in shape");
    if (q.dtype != k.dtype || q.dtype != v.dtype)
      throw py::value_error("q is " + q.dtype + ", k is " + k.dtype + ", v is " + v.dtype + "; they must have one dtype");
    if (k.shape[0] != B || k.shape[3] != D) throw py::value_error("q and k differ in batch or head dimension");
    if (k.shape[1] < 1 || H % k.shape[1])
      throw py::value_error(std::to_string(H) + " query heads are not a multiple of " + std::to_string(k.shape[1]) +
                            " key/value heads");
    if (D < 1 || D > 256) throw py::value_error("head dimension is " + std::to_string(D) + "; allowed: 1 to 256");
    const int64_t S = k.shape[2];
    if (!spec.keys.doc != !spec.queries.doc || (!spec.keys.doc && T != S))
      throw py::value_error(std::to_string(T) + " queries and " + std::to_string(S) +
                            " keys need both query_layout and key_layout");
    check_layout(given.query_layout, "query_layout", T);
    check_layout(given.key_layout, "key_layout", S);
    if (spec.pattern.kind == PatternKind::kTiles &&
        ((spec.pattern.tile_heads != 1 && spec.pattern.tile_heads != H) ||
         spec.pattern.query_tiles < kernels::ceil_div(T, spec.pattern.tile_size)))
      throw py::value_error("tiles does not cover all heads and query tiles");
    if (spec.scale == 0) spec.scale = 1 / std::sqrt(double(D));
  }

  void check_layout(const Array& layout, const char* name, int64_t length) const {
    if (layout.data && ((layout.shape[1] != 1 && layout.shape[1] != B) || layout.shape[2] != length))
      throw py::value_error(std::string(name) + " is for " + std::to_string(layout.shape[2]) + " tokens; there are " +
                            std::to_string(length));
  }

  kernels::AttentionTensors tensors(const kernels::View<4>& out, void* lse) const {
    return {view_of<4>(q, "q"), view_of<4>(k, "k"), view_of<4>(v, "v"), out, lse};
  }
};

kernels::View<4> output_view(const py::array& array, kernels::DType dtype) {
  kernels::View<4> out;
  out.data = const_cast<void*>(array.data());
  out.dtype = dtype;
  for (int i = 3, stride = 1; i >= 0; --i)
    out.size[i] = array.shape(i), out.stride[i] = i == 3 ? stride : out.stride[i + 1] * out.size[i + 1];
  return out;
}

py::tuple attention_fwd(const py::handle& q, const py::handle& k, const py::handle& v, const Spec& spec, int threads) {
  const Call call(q, k, v, spec);
  const kernels::DType dtype = dtype_of(call.q, "q");
  py::array out = new_array(dtype, call.q.shape);
  py::array lse = new_array(kernels::statistics_dtype(dtype), {call.B, call.H, call.T});
  const auto io = call.tensors(output_view(out, dtype), const_cast<void*>(lse.data()));
  HostContext host(threads);
  {
    py::gil_scoped_release release;
    kernels::attention_fwd_cpu(call.spec, io, host.context());
  }
  return py::make_tuple(out, lse);
}

py::tuple attention_bwd(const py::handle& dout, const py::handle& q, const py::handle& k, const py::handle& v,
                        const py::handle& out, const py::handle& lse, const Spec& spec, int threads) {
  const Call call(q, k, v, spec);
  const kernels::DType dtype = dtype_of(call.q, "q");
  const Array dout_array = borrow(dout, "dout"), out_array = borrow(out, "out"), lse_array = borrow(lse, "lse");
  const auto same = [&](const Array& x) { return x.shape == call.q.shape; };
  if (!same(dout_array) || !same(out_array) || lse_array.shape != std::vector<int64_t>{call.B, call.H, call.T} ||
      !lse_array.contiguous())
    throw py::value_error("dout and out must have the shape of q, and lse must be contiguous [B,H,T]");
  py::array dq = new_array(dtype, call.q.shape), dk = new_array(dtype, call.k.shape), dv = new_array(dtype, call.k.shape);
  auto out_view = view_of<4>(out_array, "out"), dout_view = view_of<4>(dout_array, "dout");
  if (out_view.dtype != dtype || dout_view.dtype != dtype || dtype_of(lse_array, "lse") != kernels::statistics_dtype(dtype))
    throw py::value_error("dout and out must have the dtype of q, and lse float32 (float64 for float64)");
  const auto io = call.tensors(out_view, lse_array.data);
  const kernels::AttentionGradients grads{dout_view, output_view(dq, dtype), output_view(dk, dtype), output_view(dv, dtype),
                                          nullptr};
  HostContext host(threads);
  {
    py::gil_scoped_release release;
    kernels::attention_bwd_cpu(call.spec, io, grads, host.context());
  }
  return py::make_tuple(dq, dk, dv);
}

}  // namespace

void bind_attention(py::module_& m) {
  py::class_<Spec>(m, "AttentionSpec", R"(What attention computes: pattern, layouts, scale and soft-cap.

pattern: "full", "s2" (group_size), "window" (window keys including itself) or "tiles" (int32 [1 or H, query tiles, slots],
increasing key tile numbers, -1 ends a list). sinks: first positions of each document that stay visible. Layouts are int32
[2 or 3, 1 or B, length]: document (-1 is padding), position, and maybe a flag whose bit 0 marks global tokens; None means one
document. scale None is 1/sqrt(D).)")
      .def(py::init(&make_spec), py::arg("pattern") = "full", py::kw_only(), py::arg("causal") = true,
           py::arg("group_size") = 0, py::arg("window") = 0, py::arg("sinks") = 0, py::arg("model_window") = 0,
           py::arg("tiles") = py::none(), py::arg("tile_size") = 0, py::arg("query_layout") = py::none(),
           py::arg("key_layout") = py::none(), py::arg("scale") = py::none(), py::arg("softcap") = 0.0);
  m.def("attention_fwd", &attention_fwd, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("spec") = Spec{}, py::kw_only(),
        py::arg("threads") = 0,
        R"(Attention forward. q [B,H,T,D]; k, v [B,K,S,D]; returns (out [B,H,T,D], lse [B,H,T]) as NumPy arrays.

float32, float64, bfloat16 (bfloat16 results are uint16 bits). threads 0 uses all cores.)");
  m.def("attention_bwd", &attention_bwd, py::arg("dout"), py::arg("q"), py::arg("k"), py::arg("v"), py::arg("out"),
        py::arg("lse"), py::arg("spec") = Spec{}, py::kw_only(), py::arg("threads") = 0,
        "Attention backward from the saved out and lse; returns (dq, dk, dv) with the shapes of q, k, v.");
  m.def(
      "attention_visible_pairs",
      [](const Spec& spec, int64_t batch, int64_t heads, int64_t queries, int64_t keys) {
        return kernels::attention_visible_pairs(spec.spec, batch, heads, queries, keys);
      },
      py::arg("spec"), py::arg("batch"), py::arg("heads"), py::arg("queries"), py::arg("keys"),
      "How many (query, head, key) pairs the spec makes visible.");
}

}  // namespace longspan::host
