// torch ops longspan::attention_fwd and longspan::attention_bwd: check, allocate, launch.
#include "kernels/attention/attention.h"

#include <string>
#include <tuple>

#include "ops/cuda.h"
#include "ops/layout.h"

namespace longspan::ops {
namespace {

using kernels::PatternKind;

PatternKind kind_of(const std::string& name) {
  if (name == "full") return PatternKind::kFull;
  if (name == "s2") return PatternKind::kShiftedGroups;
  if (name == "window") return PatternKind::kWindow;
  if (name == "selected") return PatternKind::kSelected;
  STD_TORCH_CHECK(name == "tiles", "longspan::attention: pattern must be full, s2, window, tiles or selected");
  return PatternKind::kTiles;
}

using MaybeTensor = std::optional<Tensor>;

/// What both directions are told beside their arrays.
struct Arguments {
  const MaybeTensor &q_layout, &k_layout, &tiles;
  const std::string& pattern;
  bool causal;
  int64_t group_size, window, sinks, model_window, tile_size;
  double scale, softcap;
  const MaybeTensor &key_codes, &query_codes, &codebook, &threshold, &cut;
  int64_t subspaces, codewords;
};

/// tiles int32 [query tiles, slots] for each key head (or query head, or one for all) and maybe each batch row before it.
void set_tiles(kernels::Pattern& pattern, const Tensor& q, const Tensor& k, const Arguments& given) {
  const MaybeTensor& tiles = given.tiles;
  STD_TORCH_CHECK(
      tiles && (tiles->dim() == 3 || tiles->dim() == 4) && tiles->scalar_type() == ScalarType::Int && tiles->is_contiguous(),
      "longspan::attention: tiles must be a contiguous int32 tensor [(1 or B,) 1, K or H, query tiles, slots]");
  STD_TORCH_CHECK(given.tile_size > 0 && given.tile_size % kernels::kQueryTile == 0, "longspan::attention: bad tile_size");
  const int64_t first = tiles->dim() - 3, heads = tiles->size(first), batches = first ? tiles->size(0) : 1;
  STD_TORCH_CHECK((heads == 1 || heads == q.size(1) || heads == k.size(1)) && (batches == 1 || batches == q.size(0)) &&
                      tiles->size(first + 1) >= kernels::ceil_div(q.size(2), given.tile_size),
                  "longspan::attention: tiles does not cover all batch rows, heads and query tiles");
  pattern.tiles = static_cast<const int32_t*>(tiles->const_data_ptr());
  pattern.tile_batches = batches;
  pattern.tile_heads = heads;
  pattern.query_tiles = tiles->size(first + 1);
  pattern.tile_slots = tiles->size(first + 2);
}

kernels::AttentionSpec spec_of(const Tensor& q, const Tensor& k, const Arguments& given) {
  constexpr const char* kOp = "attention";
  kernels::AttentionSpec spec;
  kernels::Pattern& pattern = spec.pattern;
  pattern.kind = kind_of(given.pattern);
  pattern.causal = given.causal;
  pattern.group_size = narrowed(given.group_size, "group_size", kOp);
  pattern.window = narrowed(given.window, "window", kOp);
  pattern.sinks = narrowed(given.sinks, "sinks", kOp);
  pattern.model_window = narrowed(given.model_window, "model_window", kOp);
  pattern.tile_size = narrowed(given.tile_size, "tile_size", kOp);
  if (pattern.kind == PatternKind::kTiles) set_tiles(pattern, q, k, given);
  if (pattern.kind == PatternKind::kSelected) {
    STD_TORCH_CHECK(given.key_codes && given.threshold && given.cut,
                    "longspan::attention: pattern selected needs key_codes, threshold and cut");
    const Tokens tokens{q.size(0), q.size(1), k.size(1), q.size(2), k.size(2)};
    spec.selection =
        selection_of(*given.key_codes, given.query_codes, given.codebook, q, tokens, given.subspaces, given.codewords, kOp);
    set_threshold(spec.selection, *given.threshold, *given.cut, tokens, kOp);
  }
  spec.queries = layout_of(given.q_layout, q.size(0), q.size(2), kOp);
  spec.keys = layout_of(given.k_layout, k.size(0), k.size(2), kOp);
  spec.scale = given.scale;
  spec.softcap = given.softcap;
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
std::tuple<Tensor, Tensor> attention_fwd(const Tensor& q, const Tensor& k, const Tensor& v, MaybeTensor q_layout,
                                         MaybeTensor k_layout, MaybeTensor tiles, StringHandle pattern_name, bool causal,
                                         int64_t group_size, int64_t window, int64_t sinks, int64_t model_window,
                                         int64_t tile_size, double scale, double softcap, MaybeTensor key_codes,
                                         MaybeTensor query_codes, MaybeTensor codebook, MaybeTensor threshold,
                                         MaybeTensor cut, int64_t subspaces, int64_t codewords) {
  const std::string pattern = taken(pattern_name);
  check_shapes(q, k, v);
  const kernels::AttentionSpec spec =
      spec_of(q, k,
              {q_layout, k_layout, tiles, pattern, causal, group_size, window, sinks, model_window, tile_size, scale,
               softcap, key_codes, query_codes, codebook, threshold, cut, subspaces, codewords});
  Tensor out = new_heads_last(q);
  Tensor lse = torch::stable::new_empty(q, {q.size(0), q.size(1), q.size(2)}, statistics_type(q));
  Device::fwd(spec, {view_of<4>(q), view_of<4>(k), view_of<4>(v), view_of<4>(out), lse.mutable_data_ptr()}, q);
  return {out, lse};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor> attention_bwd(const Tensor& dout, MaybeTensor dlse, const Tensor& q, const Tensor& k,
                                                 const Tensor& v, const Tensor& out, const Tensor& lse, MaybeTensor q_layout,
                                                 MaybeTensor k_layout, MaybeTensor tiles, StringHandle pattern_name,
                                                 bool causal, int64_t group_size, int64_t window, int64_t sinks,
                                                 int64_t model_window, int64_t tile_size, double scale, double softcap,
                                                 MaybeTensor key_codes, MaybeTensor query_codes, MaybeTensor codebook,
                                                 MaybeTensor threshold, MaybeTensor cut, int64_t subspaces,
                                                 int64_t codewords) {
  const std::string pattern = taken(pattern_name);
  check_shapes(q, k, v);
  const kernels::AttentionSpec spec =
      spec_of(q, k,
              {q_layout, k_layout, tiles, pattern, causal, group_size, window, sinks, model_window, tile_size, scale,
               softcap, key_codes, query_codes, codebook, threshold, cut, subspaces, codewords});
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
