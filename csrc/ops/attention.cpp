// torch ops longspan::attention_fwd and longspan::attention_bwd: check, allocate, launch.
#include "kernels/attention/attention.h"

#include <string>
#include <tuple>

#include "ops/cuda.h"
#include "ops/tensor.h"

namespace longspan::ops {
namespace {

using kernels::PatternKind;

PatternKind kind_of(const std::string& name) {
  if (name == "full") return PatternKind::kFull;
  if (name == "s2") return PatternKind::kShiftedGroups;
  if (name == "window") return PatternKind::kWindow;
  STD_TORCH_CHECK(name == "tiles", "longspan::attention: pattern must be full, s2, window or tiles");
  return PatternKind::kTiles;
}

/// layout int32 [2 or 3, 1 or B, length]: doc, pos and, if there is a third plane, flag.
kernels::Layout layout_of(const std::optional<Tensor>& layout, int64_t batch, int64_t length) {
  if (!layout) return {};
  STD_TORCH_CHECK(layout->scalar_type() == ScalarType::Int && layout->is_contiguous() && layout->dim() == 3,
                  "longspan::attention: a layout is a contiguous int32 tensor [2 or 3, B or 1, length]");
  const int64_t rows = layout->size(1);
  STD_TORCH_CHECK(layout->size(0) >= 2 && (rows == 1 || rows == batch) && layout->size(2) == length,
                  "longspan::attention: a layout does not fit its tokens");
  const auto* data = static_cast<const int32_t*>(layout->const_data_ptr());
  const int64_t plane = rows * length;
  return {data, data + plane, layout->size(0) > 2 ? data + 2 * plane : nullptr, rows == 1 ? 0 : length};
}

struct PatternArguments {
  const std::string& pattern;
  bool causal;
  int64_t group_size, window, sinks, model_window, tile_size;
};

kernels::AttentionSpec spec_of(const Tensor& q, const Tensor& k, const std::optional<Tensor>& q_layout,
                               const std::optional<Tensor>& k_layout, const std::optional<Tensor>& tiles,
                               const PatternArguments& p, double scale, double softcap) {
  kernels::AttentionSpec spec;
  spec.pattern.kind = kind_of(p.pattern);
  spec.pattern.causal = p.causal;
  spec.pattern.group_size = int32_t(p.group_size);
  spec.pattern.window = int32_t(p.window);
  spec.pattern.sinks = int32_t(p.sinks);
  spec.pattern.model_window = int32_t(p.model_window);
  spec.pattern.tile_size = int32_t(p.tile_size);
  if (spec.pattern.kind == PatternKind::kTiles) {
    STD_TORCH_CHECK(tiles && tiles->dim() == 3 && tiles->scalar_type() == ScalarType::Int && tiles->is_contiguous(),
                    "longspan::attention: tiles must be a contiguous int32 tensor [1 or H, query tiles, slots]");
    STD_TORCH_CHECK(p.tile_size > 0 && p.tile_size % kernels::kKeyTile == 0, "longspan::attention: bad tile_size");
    STD_TORCH_CHECK(
        (tiles->size(0) == 1 || tiles->size(0) == q.size(1)) && tiles->size(1) >= kernels::ceil_div(q.size(2), p.tile_size),
        "longspan::attention: tiles does not cover all heads and query tiles");
    spec.pattern.tiles = static_cast<const int32_t*>(tiles->const_data_ptr());
    spec.pattern.tile_heads = tiles->size(0);
    spec.pattern.query_tiles = tiles->size(1);
    spec.pattern.tile_slots = tiles->size(2);
  }
  spec.queries = layout_of(q_layout, q.size(0), q.size(2));
  spec.keys = layout_of(k_layout, k.size(0), k.size(2));
  spec.scale = scale;
  spec.softcap = softcap;
  return spec;
}

void check_shapes(const Tensor& q, const Tensor& k, const Tensor& v) {
  STD_TORCH_CHECK(q.dim() == 4 && k.dim() == 4 && v.dim() == 4, "longspan::attention: q, k and v have 4 dimensions");
  STD_TORCH_CHECK(q.size(0) == k.size(0) && q.size(3) == k.size(3) && k.size(1) > 0 && q.size(1) % k.size(1) == 0,
                  "longspan::attention: q and k do not fit");
  for (int i = 0; i < 4; ++i) STD_TORCH_CHECK(k.size(i) == v.size(i), "longspan::attention: k and v differ in shape");
  STD_TORCH_CHECK(q.scalar_type() == k.scalar_type() && q.scalar_type() == v.scalar_type(),
                  "longspan::attention: q, k and v differ in dtype");
}

/// A new [B,H,T,D] tensor with [B,T,H,D] storage, so that the projection after it reads it uncopied.
Tensor new_heads_last(const Tensor& like) {
  Tensor storage = torch::stable::new_empty(like, {like.size(0), like.size(2), like.size(1), like.size(3)});
  return torch::stable::transpose(storage, 1, 2);
}

/// Where an op runs.
struct Cpu {
  static void fwd(const kernels::AttentionSpec& spec, const kernels::AttentionTensors& io, const Tensor& like) {
    TorchContext torch_context(like);
    kernels::attention_fwd_cpu(spec, io, torch_context.context());
  }
  static void bwd(const kernels::AttentionSpec& spec, const kernels::AttentionTensors& io,
                  const kernels::AttentionGradients& grads, const Tensor& like) {
    TorchContext torch_context(like);
    kernels::attention_bwd_cpu(spec, io, grads, torch_context.context());
  }
};

#ifdef LONGSPAN_WITH_CUDA
struct Cuda {
  static void fwd(const kernels::AttentionSpec& spec, const kernels::AttentionTensors& io, const Tensor& like) {
    TorchCudaContext torch_context(like);
    kernels::attention_fwd_cuda(spec, io, torch_context.context());
  }
  static void bwd(const kernels::AttentionSpec& spec, const kernels::AttentionTensors& io,
                  const kernels::AttentionGradients& grads, const Tensor& like) {
    TorchCudaContext torch_context(like);
    kernels::attention_bwd_cuda(spec, io, grads, torch_context.context());
  }
};
#endif

template <class Device>
std::tuple<Tensor, Tensor> attention_fwd(const Tensor& q, const Tensor& k, const Tensor& v, std::optional<Tensor> q_layout,
                                         std::optional<Tensor> k_layout, std::optional<Tensor> tiles, std::string pattern,
                                         bool causal, int64_t group_size, int64_t window, int64_t sinks,
                                         int64_t model_window, int64_t tile_size, double scale, double softcap) {
  check_shapes(q, k, v);
  const kernels::AttentionSpec spec =
      spec_of(q, k, q_layout, k_layout, tiles, {pattern, causal, group_size, window, sinks, model_window, tile_size}, scale,
              softcap);
  Tensor out = new_heads_last(q);
  Tensor lse = torch::stable::new_empty(q, {q.size(0), q.size(1), q.size(2)}, statistics_type(q));
  Device::fwd(spec, {view_of<4>(q), view_of<4>(k), view_of<4>(v), view_of<4>(out), lse.mutable_data_ptr()}, q);
  return {out, lse};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor> attention_bwd(const Tensor& dout, std::optional<Tensor> dlse, const Tensor& q,
                                                 const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& lse,
                                                 std::optional<Tensor> q_layout, std::optional<Tensor> k_layout,
                                                 std::optional<Tensor> tiles, std::string pattern, bool causal,
                                                 int64_t group_size, int64_t window, int64_t sinks, int64_t model_window,
                                                 int64_t tile_size, double scale, double softcap) {
  check_shapes(q, k, v);
  const kernels::AttentionSpec spec =
      spec_of(q, k, q_layout, k_layout, tiles, {pattern, causal, group_size, window, sinks, model_window, tile_size}, scale,
              softcap);
  STD_TORCH_CHECK(lse.is_contiguous() && (!dlse || dlse->is_contiguous()), "longspan::attention: lse must be contiguous");
  Tensor dq = new_heads_last(q), dk = new_heads_last(k), dv = new_heads_last(v);
  const kernels::AttentionTensors io{view_of<4>(q), view_of<4>(k), view_of<4>(v), view_of<4>(out),
                                     const_cast<void*>(lse.const_data_ptr())};
  Device::bwd(spec, io, {view_of<4>(dout), view_of<4>(dq), view_of<4>(dk), view_of<4>(dv), data_or_null(dlse)}, q);
  return {dq, dk, dv};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(longspan, CPU, m) {
  m.impl("attention_fwd", TORCH_BOX(&attention_fwd<Cpu>));
  m.impl("attention_bwd", TORCH_BOX(&attention_bwd<Cpu>));
}

#ifdef LONGSPAN_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(longspan, CUDA, m) {
  m.impl("attention_fwd", TORCH_BOX(&attention_fwd<Cuda>));
  m.impl("attention_bwd", TORCH_BOX(&attention_bwd<Cuda>));
}
#endif

}  // namespace longspan::ops
