// attention_fwd(q [B,T,H,W], k, v [B,S,K,W], ...) -> out [B,T,H,W], lse [B,H,T]
// attention_bwd(... , dout, out, lse, dlse) -> dq, dk, dv
// Rows are stored W elements apart, of which the first `D` count: W not a multiple of 16 bytes takes the unaligned path.
// `spread` elements between rows (default W) put offsets beyond 2^31 without the memory.
#include "attention/attention.h"

#include <cmath>
#include <cstring>

#include "simt/entries/dtype.h"
#include "simt/entries/selection.h"
#include "simt/entry.h"

namespace simt {
namespace {

using namespace longspan::kernels;

PatternKind kind_of(const std::string& name) {
  if (name == "full") return PatternKind::kFull;
  if (name == "s2") return PatternKind::kShiftedGroups;
  if (name == "window") return PatternKind::kWindow;
  if (name == "tiles") return PatternKind::kTiles;
  if (name == "selected") return PatternKind::kSelected;
  throw std::invalid_argument("pattern is '" + name + "'; allowed: full, s2, window, tiles, selected");
}

/// One call's arrays and description.
struct Call {
  Device& device;
  const py::dict& arguments;
  DType dtype;
  int64_t D, spread;
  AttentionSpec spec{};

  Call(Device& memory, const py::dict& given_arguments)
      : device(memory),
        arguments(given_arguments),
        dtype(dtype_named(value<std::string>(arguments, "dtype"))),
        D(value<int64_t>(arguments, "D")),
        spread(value_or<int64_t>(arguments, "spread", 0)) {
    Pattern& p = spec.pattern;
    p.kind = kind_of(value_or<std::string>(arguments, "pattern", "full"));
    p.causal = value_or(arguments, "causal", true);
    p.group_size = value_or(arguments, "group_size", 0), p.window = value_or(arguments, "window", 0);
    p.sinks = value_or(arguments, "sinks", 0), p.model_window = value_or(arguments, "model_window", 0);
    if (p.kind == PatternKind::kTiles) {
      const Shape tiles = shape(arguments, "tiles");
      p.tiles = input<int32_t>(device, arguments, "tiles"), p.tile_size = value<int>(arguments, "tile_size");
      const size_t first = tiles.size() - 3;
      p.tile_batches = first ? tiles.at(0) : 1, p.tile_heads = tiles.at(first);
      p.query_tiles = tiles.at(first + 1), p.tile_slots = tiles.at(first + 2);
    }
    if (p.kind == PatternKind::kSelected) {
      spec.selection = selection_of(device, arguments);
      spec.selection.threshold = input_bytes(device, arguments, "threshold", given(arguments, "codebook") ? 2 : 1);
      spec.selection.cut = input<int32_t>(device, arguments, "cut");
    }
    spec.queries = layout_of(device, arguments, "query_layout");
    spec.keys = layout_of(device, arguments, "key_layout");
    spec.scale = value_or(arguments, "scale", 1 / std::sqrt(double(D)));
    spec.softcap = value_or(arguments, "softcap", 0.0);
  }

  /// [B, heads, tokens, D] of storage [B, tokens, heads, W].
  View<4> view_of(void* data, const Shape& storage) const {
    const int64_t tokens = storage.at(1), heads = storage.at(2), row = spread ? spread : storage.at(3);
    return {data, dtype, {storage.at(0), heads, tokens, D}, {tokens * heads * row, row, heads * row, 1}};
  }
  size_t width_bytes(const Shape& storage) const { return size_t(storage.at(3) * element_size(dtype)); }
  size_t rows(const Shape& storage) const { return size_t(storage.at(0) * storage.at(1) * storage.at(2)); }
  size_t spread_bytes() const { return size_t(spread * element_size(dtype)); }

  View<4> in(const char* name) const {
    const Shape storage = shape(arguments, name);
    if (!spread) return view_of(input_bytes(device, arguments, name, size_t(element_size(dtype))), storage);
    const auto packed = py::array::ensure(argument(arguments, name), py::array::c_style);
    auto* data = static_cast<char*>(device.reserve(name, rows(storage) * spread_bytes()));
    for (size_t i = 0; i < rows(storage); ++i)
      std::memcpy(data + i * spread_bytes(), static_cast<const char*>(packed.data()) + i * width_bytes(storage),
                  width_bytes(storage));
    return view_of(data, storage);
  }
  View<4> out(const char* name, const char* shaped_like) {
    const Shape storage = shape(arguments, shaped_like);
    if (!spread) return view_of(output_bytes(device, name, storage, numpy_name(dtype)), storage);
    void* data = device.reserve(name, rows(storage) * spread_bytes());
    spread_outputs.push_back({name, storage, data});
    return view_of(data, storage);
  }
  /// The outputs that were spread, packed again.
  py::dict results() const {
    py::dict packed;
    for (const auto& [name, storage, data] : spread_outputs) {
      py::array array(py::dtype(numpy_name(dtype)), storage);
      for (size_t i = 0; i < rows(storage); ++i)
        std::memcpy(static_cast<char*>(array.mutable_data()) + i * width_bytes(storage),
                    static_cast<const char*>(data) + i * spread_bytes(), width_bytes(storage));
      packed[name] = array;
    }
    return packed;
  }
  CudaContext context() const {
    return {
        nullptr,
        {&device, [](void* self, int64_t bytes) { return static_cast<Device*>(self)->scratch("scratch", size_t(bytes)); }},
        {}};
  }

 private:
  struct SpreadOutput {
    const char* name;
    Shape storage;
    void* data;
  };
  std::vector<SpreadOutput> spread_outputs;
};

py::dict attention_fwd(Device& device, const py::dict& arguments) {
  Call call(device, arguments);
  const Shape q = shape(arguments, "q");
  const AttentionTensors io{call.in("q"), call.in("k"), call.in("v"), call.out("out", "q"),
                            output<float>(device, "lse", {q.at(0), q.at(2), q.at(1)}, "float32")};
  attention_fwd_cuda(call.spec, io, call.context());
  return call.results();
}
SIMT_ENTRY(attention_fwd);

py::dict attention_bwd(Device& device, const py::dict& arguments) {
  Call call(device, arguments);
  const AttentionTensors io{call.in("q"), call.in("k"), call.in("v"), call.in("out"),
                            input<float>(device, arguments, "lse")};
  const AttentionGradients grads{call.in("dout"), call.out("dq", "q"), call.out("dk", "k"), call.out("dv", "v"),
                                 given(arguments, "dlse") ? input<float>(device, arguments, "dlse") : nullptr};
  attention_bwd_cuda(call.spec, io, grads, call.context());
  return call.results();
}
SIMT_ENTRY(attention_bwd);

}  // namespace
}  // namespace simt
