// Minima and maxima of the token arrays per run of 32, from which the other kernels skip tiles or take them whole.
#include <climits>

#include "attention/launch.h"

namespace longspan::kernels {
namespace {

constexpr int kThreads = 128;

SIMT_DEVICE int32_t warp_min(int32_t x) {
  SIMT_UNROLL
  for (int offset = 16; offset > 0; offset /= 2) x = min(x, __shfl_xor_sync(~0u, x, offset));
  return x;
}
SIMT_DEVICE int32_t warp_max(int32_t x) {
  SIMT_UNROLL
  for (int offset = 16; offset > 0; offset /= 2) x = max(x, __shfl_xor_sync(~0u, x, offset));
  return x;
}

/// One warp a run; runs of all query layouts and classes come first, then those of the key layouts.
__global__ void __launch_bounds__(kThreads) prepare_kernel(const AttentionArguments a, int query_jobs, int jobs) {
  const int lane = int(threadIdx.x) & 31;
  const int job = (int(blockIdx.x) * kThreads + int(threadIdx.x)) / 32;
  if (job >= jobs) return;
  if (job < query_jobs) {
    const int run = job % a.ranges.query_runs, rest = job / a.ranges.query_runs;
    const int layout = rest / a.ranges.classes;
    const int row = run * kRun + lane;
    const bool inside = row < a.queries;
    // Lanes past the end repeat the last row: it changes no minimum or maximum.
    const RowBounds bounds = row_bounds_of(a, layout, inside ? row : a.queries - 1, rest % a.ranges.classes == 1);
    RowRange out;
    out.doc_min = warp_min(bounds.doc), out.doc_max = warp_max(bounds.doc);
    out.floor_min = warp_min(bounds.floor), out.floor_max = warp_max(bounds.floor);
    out.ceiling_min = warp_min(bounds.ceiling), out.ceiling_max = warp_max(bounds.ceiling);
    out.low_min = warp_min(bounds.low), out.low_max = warp_max(bounds.low);
    out.any_far = __any_sync(~0u, bounds.global || a.pattern.kind == PatternKind::kSelected);
    if (lane == 0) a.ranges.rows[job] = out;
  } else {
    const int run = (job - query_jobs) % a.ranges.key_runs, layout = (job - query_jobs) / a.ranges.key_runs;
    const int key = min(run * kRun + lane, a.keys - 1);
    const int32_t doc = token_doc(a.key_layout, layout, key), pos = token_pos(a.key_layout, layout, key);
    KeyRange out;
    out.doc_min = warp_min(doc), out.doc_max = warp_max(doc);
    out.pos_min = warp_min(pos), out.pos_max = warp_max(pos);
    out.any_global = __any_sync(~0u, token_flag(a.key_layout, layout, key) & 1);
    if (lane == 0) a.ranges.keys[job - query_jobs] = out;
  }
}

}  // namespace

void launch_prepare(const AttentionArguments& args, cudaStream_t stream) {
  const int query_layouts = args.query_layout.batch_stride ? args.batch : 1;
  const int key_layouts = args.key_layout.batch_stride ? args.batch : 1;
  const int query_jobs = query_layouts * args.ranges.classes * args.ranges.query_runs;
  const int jobs = query_jobs + key_layouts * args.ranges.key_runs;
  simt::check(simt::launch(prepare_kernel, dim3(unsigned(ceil_div(jobs, kThreads / 32))), dim3(kThreads), 0, stream, args,
                           query_jobs, jobs),
              "attention (ranges)");
}

}  // namespace longspan::kernels
