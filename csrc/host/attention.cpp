// longspan.kernels.attention_fwd and attention_bwd: the attention kernels on plain arrays.
#include "kernels/attention/attention.h"

#include <pybind11/stl.h>

#include <cmath>
#include <cstdint>
#include <optional>

#include "host/bind.h"
#include "host/codes.h"
#include "host/device.h"
#include "host/layout.h"
#include "host/pool.h"

namespace longspan::host {
namespace {

using kernels::PatternKind;

/// Attention's description for calls without torch; owns the arrays that the kernel's spec points to.
struct Spec {
  kernels::AttentionSpec spec;
  Array tiles, query_layout, key_layout;
  SelectionArrays selected;
};

// A spec's arrays are borrowed before a call has a stream: the call's stream must come after what writes them.
constexpr int64_t kUnordered = -1;

PatternKind kind_of(const std::string& name) {
  if (name == "full") return PatternKind::kFull;
  if (name == "s2") return PatternKind::kShiftedGroups;
  if (name == "window") return PatternKind::kWindow;
  if (name == "tiles") return PatternKind::kTiles;
  if (name == "selected") return PatternKind::kSelected;
  throw py::value_error("pattern is '" + name + "'; allowed: full, s2, window, tiles, selected");
}

/// Throws unless the numbers of every list increase, with -1 at its end alone. Only of CPU memory.
void check_tiles(const Array& tiles) {
  const int64_t slots = tiles.shape.back();
  const auto* list = static_cast<const int32_t*>(tiles.data);
  if (tiles.cuda || tiles.numel() == 0) return;
  for (int64_t i = 0; i < tiles.numel(); ++i)
    if (list[i] < -1 || (i % slots && list[i] >= 0 && (list[i - 1] < 0 || list[i] <= list[i - 1])))
      throw py::value_error("tiles has " + std::to_string(list[i]) + " in slot " + std::to_string(i % slots) +
                            "; the numbers of a list must increase, with -1 only at its end");
}

Spec make_spec(const std::string& pattern, bool causal, int group_size, int window, int sinks, int model_window,
               const py::object& tiles, int tile_size, const py::object& query_layout, const py::object& key_layout,
               std::optional<double> scale, double softcap, const py::object& key_codes, const py::object& query_codes,
               const py::object& codebook, const py::object& threshold, const py::object& cut, int64_t subspaces,
               int64_t codewords) {
  Spec out;
  kernels::Pattern& p = out.spec.pattern;
  p.kind = kind_of(pattern);
  p.causal = causal, p.sinks = sinks, p.model_window = model_window;
  if (sinks < 0 || model_window < 0) throw py::value_error("sinks and model_window must not be negative");
  if (p.kind != PatternKind::kFull && p.kind != PatternKind::kSelected && !causal)
    throw py::value_error("pattern '" + pattern + "' is causal only");
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
    out.tiles = borrow(tiles, "tiles", kUnordered);
    const auto& shape = out.tiles.shape;
    if (out.tiles.dtype != "int32" || (shape.size() != 3 && shape.size() != 4) || !out.tiles.contiguous())
      throw py::value_error("tiles must be a contiguous int32 array [(1 or B,) 1, K or H, query tiles, slots]");
    if (tile_size < 1 || tile_size % kernels::kQueryTile)
      throw py::value_error("tile_size is " + std::to_string(tile_size) + "; it must be a multiple of " +
                            std::to_string(kernels::kQueryTile));
    check_tiles(out.tiles);
    const size_t first = shape.size() - 3;
    p.tile_size = tile_size, p.tiles = static_cast<const int32_t*>(out.tiles.data);
    p.tile_batches = first ? shape[0] : 1, p.tile_heads = shape[first];
    p.query_tiles = shape[first + 1], p.tile_slots = shape[first + 2];
  }
  if (p.kind == PatternKind::kSelected) {
    if (window < 0) throw py::value_error("window must not be negative");
    p.window = window;
    if (key_codes.is_none() || threshold.is_none() || cut.is_none())
      throw py::value_error("pattern 'selected' needs key_codes, threshold and cut");
    const auto take = [](const py::object& object, const char* name) {
      return object.is_none() ? Array{} : borrow(object, name, kUnordered);
    };
    out.selected = {take(key_codes, "key_codes"),
                    take(query_codes, "query_codes"),
                    take(codebook, "codebook"),
                    take(threshold, "threshold"),
                    take(cut, "cut"),
                    subspaces,
                    codewords};
  }
  set_layout(query_layout, "query_layout", out.query_layout, out.spec.queries, kUnordered);
  set_layout(key_layout, "key_layout", out.key_layout, out.spec.keys, kUnordered);
  out.spec.scale = scale.value_or(0);
  out.spec.softcap = softcap;
  return out;
}

/// The arrays of one call, checked against each other and the spec.
struct Call {
  Stream stream;
  Array q, k, v;
  kernels::AttentionSpec spec;
  int64_t B, H, T, D;

  Call(const py::handle& q_, const py::handle& k_, const py::handle& v_, const Spec& given, Stream on)
      : stream(on), q(borrow(q_, "q", on)), k(borrow(k_, "k", on)), v(borrow(v_, "v", on)), spec(given.spec) {
    check_device(k, "k", q, "q");
    check_device(v, "v", q, "q");
    if (given.tiles.data) check_device(given.tiles, "tiles", q, "q");
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
    check_layout(given.query_layout, "query_layout", B, T, q, "q");
    check_layout(given.key_layout, "key_layout", B, S, q, "q");
    if (spec.pattern.kind == PatternKind::kTiles &&
        ((spec.pattern.tile_heads != 1 && spec.pattern.tile_heads != H && spec.pattern.tile_heads != k.shape[1]) ||
         (spec.pattern.tile_batches != 1 && spec.pattern.tile_batches != B) ||
         spec.pattern.query_tiles < kernels::ceil_div(T, spec.pattern.tile_size)))
      throw py::value_error("tiles does not cover all batch rows, heads and query tiles");
    if (spec.pattern.kind == PatternKind::kSelected) {
      check_device(given.selected.key_codes, "key_codes", q, "q");
      spec.selection = given.selected.selection(view, {B, H, k.shape[1], T, S});
    }
    if (spec.scale == 0) spec.scale = 1 / std::sqrt(double(D));
  }

  Arguments arguments() const { return {q, "q", stream}; }
  kernels::AttentionTensors tensors(const kernels::View<4>& out, void* lse) const {
    return {view_of<4>(q, "q"), view_of<4>(k, "k"), view_of<4>(v, "v"), out, lse};
  }
};

py::tuple attention_fwd(const py::handle& q, const py::handle& k, const py::handle& v, const Spec& spec, int threads,
                        const py::object& out_, const py::object& lse_, int64_t stream) {
  const Call call(q, k, v, spec, stream);
  const kernels::DType dtype = dtype_of(call.q, "q");
  const Arguments others = call.arguments();
  const Output out = others.output(out_, "out", call.q.shape, dtype);
  const Output lse = others.output(lse_, "lse", {call.B, call.H, call.T}, kernels::statistics_dtype(dtype));
  check_contiguous(lse.array, "lse");
  const auto io = call.tensors(view_of<4>(out.array, "out"), lse.array.data);
  run_on(
      call.q, threads, stream, [&](const auto& context) { kernels::attention_fwd_cpu(call.spec, io, context); },
      [&](const auto& context) { LONGSPAN_CUDA_ENTRY(kernels::attention_fwd_cuda(call.spec, io, context)); });
  return py::make_tuple(out.object, lse.object);
}

py::tuple attention_bwd(const py::handle& dout_, const py::handle& q, const py::handle& k, const py::handle& v,
                        const py::handle& out_, const py::handle& lse_, const Spec& spec, int threads,
                        const py::object& dlse_, const py::object& dq_, const py::object& dk_, const py::object& dv_,
                        int64_t stream) {
  const Call call(q, k, v, spec, stream);
  const kernels::DType dtype = dtype_of(call.q, "q");
  const std::vector<int64_t> rows{call.B, call.H, call.T};
  const Arguments others = call.arguments();
  const Array dout = others.input(dout_, "dout", call.q.shape, dtype), out = others.input(out_, "out", call.q.shape, dtype);
  const Array lse = others.input(lse_, "lse", rows, kernels::statistics_dtype(dtype));
  const Array dlse = others.optional_input(dlse_, "dlse", rows, kernels::statistics_dtype(dtype));
  check_contiguous(lse, "lse");
  if (dlse.data) check_contiguous(dlse, "dlse");
  const Output dq = others.output(dq_, "dq", call.q.shape, dtype), dk = others.output(dk_, "dk", call.k.shape, dtype),
               dv = others.output(dv_, "dv", call.k.shape, dtype);
  const auto io = call.tensors(view_of<4>(out, "out"), lse.data);
  const kernels::AttentionGradients grads{view_of<4>(dout, "dout"), view_of<4>(dq.array, "dq"), view_of<4>(dk.array, "dk"),
                                          view_of<4>(dv.array, "dv"), dlse.data};
  run_on(
      call.q, threads, stream, [&](const auto& context) { kernels::attention_bwd_cpu(call.spec, io, grads, context); },
      [&](const auto& context) { LONGSPAN_CUDA_ENTRY(kernels::attention_bwd_cuda(call.spec, io, grads, context)); });
  return py::make_tuple(dq.object, dk.object, dv.object);
}

}  // namespace

void bind_attention(py::module_& m) {
  py::class_<Spec>(m, "AttentionSpec", R"(What attention computes: pattern, layouts, scale and soft-cap.

pattern: "full", "s2" (group_size), "window" (window keys including itself), "tiles" (int32 [(1 or B,) 1, K or H, query tiles, slots] for tiles of
tile_size, a multiple of 64; increasing key tile numbers, -1 ends a list) or "selected" (near keys by window and sinks, and of the others those that
topl_threshold kept: key_codes, threshold, cut, and codebook or query_codes with subspaces and codewords). sinks: first positions of each document that stay visible. Layouts are int32
[2 or 3, 1 or B, length]: document (-1 is padding), position, and maybe a flag whose bit 0 marks global tokens; None means one
document. scale None is 1/sqrt(D).)")
      .def(py::init(&make_spec), py::arg("pattern") = "full", py::kw_only(), py::arg("causal") = true,
           py::arg("group_size") = 0, py::arg("window") = 0, py::arg("sinks") = 0, py::arg("model_window") = 0,
           py::arg("tiles") = py::none(), py::arg("tile_size") = 0, py::arg("query_layout") = py::none(),
           py::arg("key_layout") = py::none(), py::arg("scale") = py::none(), py::arg("softcap") = 0.0,
           py::arg("key_codes") = py::none(), py::arg("query_codes") = py::none(), py::arg("codebook") = py::none(),
           py::arg("threshold") = py::none(), py::arg("cut") = py::none(), py::arg("subspaces") = 0,
           py::arg("codewords") = 0);
  m.def("attention_fwd", &attention_fwd, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("spec") = Spec{}, py::kw_only(),
        py::arg("threads") = 0, py::arg("out") = py::none(), py::arg("lse") = py::none(), py::arg("stream") = 1,
        R"(Attention forward. q [B,H,T,D]; k, v [B,K,S,D]; returns (out [B,H,T,D], lse [B,H,T]).

CPU memory: float32, float64, bfloat16; out and lse are written where given, else they are new NumPy arrays (bfloat16 as uint16
bits). threads 0 uses all cores. CUDA memory: float32, float16, bfloat16; out and lse must be given; the kernels are put on
`stream` (a cudaStream_t as a number; 1 is the legacy default stream) and nothing waits for them.)");
  m.def("attention_bwd", &attention_bwd, py::arg("dout"), py::arg("q"), py::arg("k"), py::arg("v"), py::arg("out"),
        py::arg("lse"), py::arg("spec") = Spec{}, py::kw_only(), py::arg("threads") = 0, py::arg("dlse") = py::none(),
        py::arg("dq") = py::none(), py::arg("dk") = py::none(), py::arg("dv") = py::none(), py::arg("stream") = 1,
        R"(Attention backward from the saved out and lse; returns (dq, dk, dv) with the shapes of q, k, v.

dlse [B,H,T] is the gradient of lse, None for none. Memory and streams as in attention_fwd: on CUDA dq, dk, dv must be given.)");
  m.def(
      "attention_visible_pairs",
      [](const Spec& spec, int64_t batch, int64_t heads, int64_t queries, int64_t keys) {
        for (const auto& [value, name] : {std::pair{batch, "batch"}, {heads, "heads"}, {queries, "queries"}, {keys, "keys"}})
          if (value < 0 || value > INT32_MAX)
            throw py::value_error(std::string(name) + " is " + std::to_string(value) + "; allowed: 0 to 2^31 - 1");
        const std::pair<const Array*, int64_t> layouts[] = {{&spec.query_layout, queries}, {&spec.key_layout, keys}};
        for (const auto& [layout, length] : layouts)
          if (layout->data &&
              (layout->cuda || layout->shape[2] != length || (layout->shape[1] != 1 && layout->shape[1] != batch)))
            throw py::value_error("a layout is not of " + std::to_string(batch) + " rows (or 1) of " +
                                  std::to_string(length) + " tokens in CPU memory");
        const kernels::Pattern& p = spec.spec.pattern;
        if (p.kind == PatternKind::kTiles &&
            (spec.tiles.cuda || p.tile_heads < 1 || heads % p.tile_heads || p.tile_heads > heads ||
             (p.tile_batches != 1 && p.tile_batches != batch) || p.query_tiles < kernels::ceil_div(queries, p.tile_size)))
          throw py::value_error("tiles does not cover all batch rows, heads and query tiles, or is not in CPU memory");
        return kernels::attention_visible_pairs(spec.spec, batch, heads, queries, keys);
      },
      py::arg("spec"), py::arg("batch"), py::arg("heads"), py::arg("queries"), py::arg("keys"),
      "How many (query, head, key) pairs the spec makes visible.");
}

}  // namespace longspan::host
