// Attention backward in float32 by plain FMA; the same two kernels as on tensor cores (bwd_mma.cuh).
#include <cmath>

#include "attention/launch.h"
#include "common/fma_tile.cuh"

namespace longspan::kernels {
namespace {

/// Tiles of R rows and R keys; four of them fit the 99 KiB that every architecture from sm_80 on has.
template <int D>
inline constexpr int kTile = D <= 128 ? 32 : 16;

template <int D>
struct Shared {
  static constexpr int kElements = kTile<D> * FloatTile<D>::kStride;
  float q[kElements], dout[kElements], k[kElements], v[kElements];
  float p[kTile<D> * (kTile<D> + 1)], ds[kTile<D> * (kTile<D> + 1)];
};

template <int D>
SIMT_DEVICE Visibility classify_pair(const AttentionArguments& a, int batch, int head, int first_row, int first_key) {
  if (!tile_listed(a, batch, head, first_row, first_key)) return Visibility::kSkip;
  return classify(row_runs(a, batch, head)[first_row / kRun], key_runs(a, batch)[first_key / kRun], a.pattern.sinks);
}

/// p and ds of one tile pair, [rows, keys] in shared memory; all four tiles are there.
template <int D, bool Selects>
SIMT_DEVICE void tile_gradients(const AttentionArguments& a, Shared<D>& shared, int batch, int head, int first_row,
                                int first_key, bool masked) {
  constexpr int R = kTile<D>;
  float s[R / 16][R / 8], dp[R / 16][R / 8];
  multiply_rows<D, R, R>(s, shared.q, shared.k);
  multiply_rows<D, R, R>(dp, shared.dout, shared.v);
  const int64_t statistics = (int64_t(batch) * a.heads + head) * a.queries;
  SIMT_UNROLL
  for (int i = 0; i < R / 16; ++i) {
    const int row = first_row + fma_y() + 16 * i, inside = min(row, a.queries - 1);
    const float lse = row < a.queries ? a.lse_log2[statistics + row] : INFINITY;
    const float delta = a.delta[statistics + inside];
    const RowBounds bounds = row_bounds_of(a, batch, inside, is_shifted(a, head));
    SIMT_UNROLL
    for (int j = 0; j < R / 8; ++j) {
      const int key = first_key + fma_x() + 8 * j;
      const float z = score_of(a, s[i][j]);
      const float t = has_softcap(a) ? z / a.softcap : 0.f;
      float p = exp2f(z - lse);
      if ((key >= a.keys && !simt::mutant(56)) ||
          (masked && !pair_visible<Selects>(a, a.key_layout, bounds, batch, batch, head, inside, min(key, a.keys - 1))))
        p = 0;
      s[i][j] = p;
      dp[i][j] = p * (dp[i][j] - delta) * (1.f - t * t);
    }
  }
  share_product<R, R, R + 1>(shared.p, s);
  share_product<R, R, R + 1>(shared.ds, dp);
}

template <int D, bool Selects>
__global__ void __launch_bounds__(kFmaThreads, 2) attention_bwd_keys_f32_kernel(const AttentionArguments a, bool aligned) {
  constexpr int R = kTile<D>;
  auto& shared = *simt::dyn_smem<Shared<D>>();
  const BlockPlace at = block_place(int(ceil_div(a.keys, R)), a.key_heads);
  const int first_key = at.tile * R, group = a.heads / a.key_heads;
  load_float_tile<D, R>(shared.k, a.k.at<float>(at.batch, at.head), a.k.row, first_key, a.keys, a.D, aligned);
  load_float_tile<D, R>(shared.v, a.v.at<float>(at.batch, at.head), a.v.row, first_key, a.keys, a.D, aligned);
  float4 dk[R / 16][D / 32] = {}, dv[R / 16][D / 32] = {};
  for (int head = at.head * group; head < (at.head + 1) * group; ++head) {
    TileWalk walk(int(ceil_div(a.queries, R)));
    const auto classify_tile = [&](int tile) { return classify_pair<D>(a, at.batch, head, tile * R, first_key); };
    for (TileVisit visit = walk.next(classify_tile); visit.index >= 0; visit = walk.next(classify_tile)) {
      const int first_row = visit.index * R;
      if (!simt::mutant(54)) __syncthreads();  // the tiles before are read
      load_float_tile<D, R>(shared.q, a.q.at<float>(at.batch, head), a.q.row, first_row, a.queries, a.D, aligned);
      load_float_tile<D, R>(shared.dout, a.dout.at<float>(at.batch, head), a.dout.row, first_row, a.queries, a.D, aligned);
      float_tiles_landed();
      tile_gradients<D, Selects>(a, shared, at.batch, head, first_row, first_key, visit.masked);
      if (!simt::mutant(55)) __syncthreads();
      accumulate<D, R, R, 1, R + 1>(dv, shared.p, shared.dout);
      accumulate<D, R, R, 1, R + 1>(dk, shared.ds, shared.q);
    }
  }
  ptx::cp_async_wait<0>();
  float for_v[R / 16], for_k[R / 16];
  SIMT_UNROLL
  for (int i = 0; i < R / 16; ++i) for_v[i] = 1.f, for_k[i] = a.scale;
  store_rows<D, R>(a.dv.at<float>(at.batch, at.head), a.dv.row, dv, first_key, a.keys, a.D, for_v);
  store_rows<D, R>(a.dk.at<float>(at.batch, at.head), a.dk.row, dk, first_key, a.keys, a.D, for_k);
}

template <int D, bool Selects>
__global__ void __launch_bounds__(kFmaThreads, 2)
    attention_bwd_queries_f32_kernel(const AttentionArguments a, bool aligned) {
  constexpr int R = kTile<D>;
  auto& shared = *simt::dyn_smem<Shared<D>>();
  const BlockPlace at = block_place(int(ceil_div(a.queries, R)), a.heads);
  const int first_row = at.tile * R, kv_head = at.head / (a.heads / a.key_heads);
  load_float_tile<D, R>(shared.q, a.q.at<float>(at.batch, at.head), a.q.row, first_row, a.queries, a.D, aligned);
  load_float_tile<D, R>(shared.dout, a.dout.at<float>(at.batch, at.head), a.dout.row, first_row, a.queries, a.D, aligned);
  float4 dq[R / 16][D / 32] = {};
  TileWalk walk(int(ceil_div(a.keys, R)));
  const auto classify_tile = [&](int tile) { return classify_pair<D>(a, at.batch, at.head, first_row, tile * R); };
  for (TileVisit visit = walk.next(classify_tile); visit.index >= 0; visit = walk.next(classify_tile)) {
    const int first_key = visit.index * R;
    if (!simt::mutant(57)) __syncthreads();  // the tiles before are read
    load_float_tile<D, R>(shared.k, a.k.at<float>(at.batch, kv_head), a.k.row, first_key, a.keys, a.D, aligned);
    load_float_tile<D, R>(shared.v, a.v.at<float>(at.batch, kv_head), a.v.row, first_key, a.keys, a.D, aligned);
    float_tiles_landed();
    tile_gradients<D, Selects>(a, shared, at.batch, at.head, first_row, first_key, visit.masked);
    __syncthreads();
    accumulate<D, R, R, R + 1, 1>(dq, shared.ds, shared.k);
  }
  ptx::cp_async_wait<0>();
  float factor[R / 16];
  SIMT_UNROLL
  for (float& x : factor) x = a.scale;
  store_rows<D, R>(a.dq.at<float>(at.batch, at.head), a.dq.row, dq, first_row, a.queries, a.D, factor);
}

template <int D, bool Selects = false>
void launch(const AttentionArguments& args, bool aligned, cudaStream_t stream) {
  const int64_t key_blocks = ceil_div(args.keys, kTile<D>) * args.key_heads * args.batch;
  if (key_blocks > 0)
    simt::check(simt::launch(attention_bwd_keys_f32_kernel<D, Selects>, dim3(unsigned(key_blocks)), dim3(kFmaThreads),
                             sizeof(Shared<D>), stream, args, aligned),
                "attention_bwd (dK, dV)");
  const int64_t query_blocks = ceil_div(args.queries, kTile<D>) * args.heads * args.batch;
  if (query_blocks > 0)
    simt::check(simt::launch(attention_bwd_queries_f32_kernel<D, Selects>, dim3(unsigned(query_blocks)), dim3(kFmaThreads),
                             sizeof(Shared<D>), stream, args, aligned),
                "attention_bwd (dQ)");
}

}  // namespace

void launch_bwd_f32(const AttentionArguments& args, bool aligned, cudaStream_t stream) {
  if (args.pattern.kind == PatternKind::kSelected) {
    if (args.D <= 64) return launch<64, true>(args, aligned, stream);
    if (args.D <= 128) return launch<128, true>(args, aligned, stream);
    return launch<256, true>(args, aligned, stream);
  }
  if (args.D <= 32) return launch<32>(args, aligned, stream);
  if (args.D <= 64) return launch<64>(args, aligned, stream);
  if (args.D <= 96) return launch<96>(args, aligned, stream);
  if (args.D <= 128) return launch<128>(args, aligned, stream);
  launch<256>(args, aligned, stream);
}

}  // namespace longspan::kernels
