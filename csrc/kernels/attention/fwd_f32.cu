// Attention forward in float32 by plain FMA: blocked online softmax on tiles of 32 rows and 32 keys.
#include <cmath>

#include "attention/launch.h"
#include "common/fma_tile.cuh"

namespace longspan::kernels {
namespace {

constexpr int kRows = 32, kKeys = 32;

/// One buffer serves keys and then values: 71 KiB at D = 256, which every architecture from sm_80 on has.
template <int D>
struct Shared {
  float q[kRows * FloatTile<D>::kStride];
  float keys[kKeys * FloatTile<D>::kStride];
  float p[kRows * (kKeys + 1)];
};

template <int D, bool Selects>
__global__ void __launch_bounds__(kFmaThreads, 2) attention_fwd_f32_kernel(const AttentionArguments a, bool aligned) {
  auto& shared = *simt::dyn_smem<Shared<D>>();
  const int tiles = int(ceil_div(a.queries, kRows));
  BlockPlace at = block_place(tiles, a.heads);
  at.tile = tiles - 1 - at.tile;  // late rows see the most keys: start them first
  const int first_row = at.tile * kRows, kv_head = at.head / (a.heads / a.key_heads);
  const bool shifted = is_shifted(a, at.head);
  load_float_tile<D, kRows>(shared.q, a.q.at<float>(at.batch, at.head), a.q.row, first_row, a.queries, a.D, aligned);

  float4 acc[kRows / 16][D / 32] = {};
  float top[kRows / 16], sum[kRows / 16] = {};
  SIMT_UNROLL
  for (float& x : top) x = -INFINITY;
  TileWalk walk(int(ceil_div(a.keys, kKeys)));
  const auto classify_tile = [&](int tile) {
    if (!tile_listed(a, at.batch, at.head, first_row, tile * kKeys)) return Visibility::kSkip;
    const Visibility whole = classify(row_runs(a, at.batch, at.head)[first_row / kRun],
                                      key_runs(a, at.batch)[tile * kKeys / kRun], a.pattern.sinks);
    const bool ragged = (tile + 1) * kKeys > a.keys;
    return whole == Visibility::kFull && ragged ? Visibility::kPartial : whole;
  };
  static_assert(kRows == kRun && kKeys == kRun);
  for (TileVisit visit = walk.next(classify_tile); visit.index >= 0; visit = walk.next(classify_tile)) {
    const int first_key = visit.index * kKeys;
    if (!simt::mutant(51)) __syncthreads();  // the products before are read
    load_float_tile<D, kKeys>(shared.keys, a.k.at<float>(at.batch, kv_head), a.k.row, first_key, a.keys, a.D, aligned);
    float_tiles_landed();
    float s[kRows / 16][kKeys / 8];
    multiply_rows<D, kRows, kKeys>(s, shared.q, shared.keys);
    __syncthreads();
    load_float_tile<D, kKeys>(shared.keys, a.v.at<float>(at.batch, kv_head), a.v.row, first_key, a.keys, a.D, aligned);
    SIMT_UNROLL
    for (int i = 0; i < kRows / 16; ++i) {
      const int row = min(first_row + fma_y() + 16 * i, a.queries - 1);
      const RowBounds bounds = row_bounds_of(a, at.batch, row, shifted);
      float high = top[i];
      SIMT_UNROLL
      for (int j = 0; j < kKeys / 8; ++j) {
        const int key = first_key + fma_x() + 8 * j;
        s[i][j] = score_of(a, s[i][j]);
        if (visit.masked && !simt::mutant(52) &&
            (key >= a.keys || !pair_visible<Selects>(a, a.key_layout, bounds, at.batch, at.batch, at.head, row, key)))
          s[i][j] = -INFINITY;
        high = fmaxf(high, s[i][j]);
      }
      SIMT_UNROLL
      for (int offset = 4; offset > 0; offset /= 2) high = fmaxf(high, __shfl_xor_sync(~0u, high, offset));
      const float base = high == -INFINITY ? 0.f : high;
      const float rescale = exp2f(top[i] - base);
      top[i] = high;
      sum[i] *= simt::mutant(53) ? 1.f : rescale;
      SIMT_UNROLL
      for (int j = 0; j < kKeys / 8; ++j) sum[i] += s[i][j] = exp2f(s[i][j] - base);
      SIMT_UNROLL
      for (float4& x : acc[i]) x.x *= rescale, x.y *= rescale, x.z *= rescale, x.w *= rescale;
    }
    share_product<kRows, kKeys, kKeys + 1>(shared.p, s);
    float_tiles_landed();
    accumulate<D, kRows, kKeys, kKeys + 1, 1>(acc, shared.p, shared.keys);
  }
  ptx::cp_async_wait<0>();

  float inverse[kRows / 16];
  SIMT_UNROLL
  for (int i = 0; i < kRows / 16; ++i) {
    SIMT_UNROLL
    for (int offset = 4; offset > 0; offset /= 2) sum[i] += __shfl_xor_sync(~0u, sum[i], offset);
    inverse[i] = sum[i] > 0 ? 1.f / sum[i] : 0.f;
    const int row = first_row + fma_y() + 16 * i;
    if (row < a.queries && fma_x() == 0)
      a.lse[(int64_t(at.batch) * a.heads + at.head) * a.queries + row] =
          sum[i] > 0 ? top[i] * kLn2 + logf(sum[i]) : -INFINITY;
  }
  store_rows<D, kRows>(a.out.at<float>(at.batch, at.head), a.out.row, acc, first_row, a.queries, a.D, inverse);
}

template <int D, bool Selects = false>
void launch(const AttentionArguments& args, bool aligned, cudaStream_t stream) {
  const int64_t blocks = ceil_div(args.queries, kRows) * args.heads * args.batch;
  simt::check(simt::launch(attention_fwd_f32_kernel<D, Selects>, dim3(unsigned(blocks)), dim3(kFmaThreads),
                           sizeof(Shared<D>), stream, args, aligned),
              "attention_fwd");
}

}  // namespace

void launch_fwd_f32(const AttentionArguments& args, bool aligned, cudaStream_t stream) {
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
