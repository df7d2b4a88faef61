// The CUDA entry points: from views to the kernels' parameter.
#include <climits>
#include <cmath>
#include <stdexcept>

#include "attention/launch.h"
#include "pq/tables.h"

namespace longspan::kernels {
namespace {

template <class T>
T* scratch(const CudaContext& context, int64_t count) {
  return static_cast<T*>(context.workspace.get(context.workspace.self, count * int64_t(sizeof(T))));
}

DeviceArray array_of(const View<4>& view) { return {view.data, view.stride[0], view.stride[1], view.stride[2]}; }

bool is_aligned(const View<4>& view) {
  bool aligned = reinterpret_cast<uintptr_t>(view.data) % 16 == 0;
  for (int i = 0; i < 3; ++i)
    aligned = aligned && (view.size[i] == 1 || view.stride[i] * element_size(view.dtype) % 16 == 0);
  return aligned;
}

AttentionArguments arguments_of(const AttentionSpec& spec, const AttentionTensors& io) {
  if (io.q.dtype == DType::kFloat64)
    throw std::invalid_argument("attention on CUDA takes float32, float16 and bfloat16, not float64");
  AttentionArguments args;
  for (int64_t n : {io.q.size[2], io.k.size[2]})
    if (n > INT_MAX - 1024) throw std::invalid_argument("attention on CUDA takes fewer than 2^31 - 1024 tokens a row");
  if (io.q.size[0] * io.q.size[1] * ceil_div(io.q.size[2], 16) > INT_MAX ||
      io.k.size[0] * io.k.size[1] * ceil_div(io.k.size[2], 16) > INT_MAX)
    throw std::invalid_argument("attention on CUDA takes at most 2^31 tiles of 16 rows over batch and heads");
  args.q = array_of(io.q), args.k = array_of(io.k), args.v = array_of(io.v), args.out = array_of(io.out);
  args.lse = static_cast<float*>(io.lse);
  args.batch = int(io.q.size[0]), args.heads = int(io.q.size[1]), args.key_heads = int(io.k.size[1]);
  args.queries = int(io.q.size[2]), args.keys = int(io.k.size[2]), args.D = int(io.q.size[3]);
  args.scale = float(spec.scale);
  args.score_factor = float(spec.softcap > 0 ? spec.scale / spec.softcap : spec.scale * double(kLog2e));
  args.softcap = float(spec.softcap * double(kLog2e));
  args.pattern = spec.pattern;
  args.query_layout = spec.queries, args.key_layout = spec.keys;
  if (args.pattern.kind == PatternKind::kSelected) args.selection = DeviceSelection(spec.selection);
  return args;
}

/// Tables of a selection's scores, where there is one; its 16-bit kernels are for aligned arrays.
void prepare_selection(AttentionArguments& args, const AttentionSpec& spec, const View<4>& q, bool aligned,
                       const CudaContext& context) {
  if (args.pattern.kind != PatternKind::kSelected) return;
  if (q.dtype != DType::kFloat32 && !aligned)
    throw std::invalid_argument(
        "attention on CUDA takes 16-bit arrays for pattern 'selected' whose rows all start on 16 bytes (D a multiple of 8)");
  const int64_t rows = int64_t(args.batch) * args.heads * args.queries;
  auto* tables = scratch<unsigned char>(context, rows * table_bytes(spec.selection.codebook));
  score_tables_cuda(spec.selection, q, args.batch, args.heads, args.queries, tables, context);
  args.tables = tables;
}

void prepare(AttentionArguments& args, const CudaContext& context, cudaStream_t stream) {
  DeviceRanges& ranges = args.ranges;
  ranges.classes = args.pattern.kind == PatternKind::kShiftedGroups ? 2 : 1;
  ranges.query_runs = int(ceil_div(args.queries, kRun)), ranges.key_runs = int(ceil_div(args.keys, kRun));
  const int64_t query_layouts = args.query_layout.batch_stride ? args.batch : 1;
  const int64_t key_layouts = args.key_layout.batch_stride ? args.batch : 1;
  ranges.rows = scratch<RowRange>(context, query_layouts * ranges.classes * ranges.query_runs);
  ranges.keys = scratch<KeyRange>(context, key_layouts * ranges.key_runs);
  launch_prepare(args, stream);
}

}  // namespace

void attention_fwd_cuda(const AttentionSpec& spec, const AttentionTensors& io, const CudaContext& context) {
  AttentionArguments args = arguments_of(spec, io);
  if (args.batch == 0 || args.heads == 0 || args.queries == 0) return;
  const auto stream = static_cast<cudaStream_t>(context.stream);
  prepare(args, context, stream);
  bool aligned = true;
  for (const View<4>* view : {&io.q, &io.k, &io.v, &io.out}) aligned = aligned && is_aligned(*view);
  prepare_selection(args, spec, io.q, aligned, context);
  if (io.q.dtype == DType::kBFloat16) return launch_fwd_bf16(args, aligned, stream);
  if (io.q.dtype == DType::kFloat16) return launch_fwd_f16(args, aligned, stream);
  launch_fwd_f32(args, aligned, stream);
}

void attention_bwd_cuda(const AttentionSpec& spec, const AttentionTensors& io, const AttentionGradients& grads,
                        const CudaContext& context) {
  AttentionArguments args = arguments_of(spec, io);
  if (args.batch == 0 || args.heads == 0 || (args.queries == 0 && args.keys == 0)) return;
  const auto stream = static_cast<cudaStream_t>(context.stream);
  args.dout = array_of(grads.dout);
  args.dq = array_of(grads.dq), args.dk = array_of(grads.dk), args.dv = array_of(grads.dv);
  args.dlse = static_cast<const float*>(grads.dlse);
  const int64_t rows = int64_t(args.batch) * args.heads * args.queries;
  args.lse_log2 = scratch<float>(context, rows), args.delta = scratch<float>(context, rows);
  prepare(args, context, stream);
  launch_delta(args, io.q.dtype, stream);
  bool aligned = true;
  for (const View<4>* view : {&io.q, &io.k, &io.v, &grads.dout, &grads.dq, &grads.dk, &grads.dv})
    aligned = aligned && is_aligned(*view);
  prepare_selection(args, spec, io.q, aligned, context);
  if (io.q.dtype == DType::kBFloat16) return launch_bwd_bf16(args, aligned, stream);
  if (io.q.dtype == DType::kFloat16) return launch_bwd_f16(args, aligned, stream);
  launch_bwd_f32(args, aligned, stream);
}

}  // namespace longspan::kernels
