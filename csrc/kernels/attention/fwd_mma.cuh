#pragma once
// Attention forward on tensor cores: blocked online softmax (Milakov and Gimelshein 2018; FlashAttention-2, Dao 2023,
// section 3.1). A warp owns MT x 16 query rows and their whole output row; keys and values stream through two stages of
// shared memory.
#include <cmath>

#include "attention/device.cuh"
#include "common/mma_tile.cuh"

namespace longspan::kernels {

/// Tile sizes. MT: 16-row tiles of queries a warp holds; BN: keys a step. Selects: pairs may be seen for their codes.
template <int D_, int MT_, int BN_, int Warps_, bool Selects_ = false>
struct ForwardShape {
  static constexpr int D = D_, MT = MT_, BN = BN_, Warps = Warps_;
  static constexpr bool Selects = Selects_;
  static constexpr int BM = 16 * MT * Warps, Threads = 32 * Warps;
};

template <class T, class Shape>
struct ForwardShared {
  T q[Shape::BM * Shape::D];
  T k[2][Shape::BN * Shape::D];
  T v[2][Shape::BN * Shape::D];
  // What does not change for a block: here and not in registers, all of which the products need.
  const T *keys, *values;
  BlockPlace place;
  RowRange rows;
  const KeyRange* key_runs;
  Layout query_layout, key_layout;
};

template <class T, class Shape, bool Aligned>
struct Forward {
  static constexpr int D = Shape::D, MT = Shape::MT, BN = Shape::BN, NT = BN / 8;
  const AttentionArguments& a;
  ForwardShared<T, Shape>& shared;
  BlockPlace at;
  int first_row;

  FragmentC acc[MT][D / 8] = {};
  float top[MT][2], sum[MT][2];  // running maximum of scores and this lane's part of the row sum

  SIMT_DEVICE Forward(const AttentionArguments& args, ForwardShared<T, Shape>& memory, BlockPlace place)
      : a(args), shared(memory), at(place), first_row(place.tile * Shape::BM) {
    SIMT_UNROLL
    for (int m = 0; m < MT; ++m) SIMT_UNROLL
    for (int half = 0; half < 2; ++half) top[m][half] = -INFINITY, sum[m][half] = 0;
  }

  /// Whether scores need more than a factor: a soft-cap, or a scale that turns the maximum around.
  SIMT_DEVICE bool transforms() const { return a.softcap > 0 || !(a.score_factor > 0); }
  SIMT_DEVICE float factor() const { return transforms() ? 1.f : a.score_factor; }
  SIMT_DEVICE int warp_row(int m) const { return (warp_id() * MT + m) * 16; }

  SIMT_DEVICE void load_keys(int stage, int tile) {
    load_tile<D, BN, Shape::Threads, Aligned>(shared.k[stage], shared.keys, a.k.row, tile * BN, a.keys, a.D);
    load_tile<D, BN, Shape::Threads, Aligned>(shared.v[stage], shared.values, a.v.row, tile * BN, a.keys, a.D);
    ptx::cp_async_commit();
  }

  SIMT_DEVICE Visibility classify_tile(int tile) const {
    if (!tile_listed(a, at.batch, at.head, first_row, tile * BN)) return Visibility::kSkip;
    const KeyRange keys = range_of(shared.key_runs, a.ranges.key_runs, tile * BN, BN);
    const Visibility whole = classify(shared.rows, keys, a.pattern.sinks);
    const bool ragged = (tile + 1) * BN > a.keys && !simt::mutant(6);
    return whole == Visibility::kFull && ragged ? Visibility::kPartial : whole;
  }

  SIMT_DEVICE void run() {
    if (threadIdx.x == 0) {
      shared.place = at;
      const int kv_head = at.head / (a.heads / a.key_heads);
      shared.keys = a.k.at<T>(at.batch, kv_head), shared.values = a.v.at<T>(at.batch, kv_head);
      shared.rows = range_of(row_runs(a, at.batch, at.head), a.ranges.query_runs, first_row, Shape::BM);
      shared.key_runs = key_runs(a, at.batch);
      shared.query_layout = layout_of_row(a.query_layout, at.batch);
      shared.key_layout = layout_of_row(a.key_layout, at.batch);
    }
    if (!simt::mutant(15)) __syncthreads();
    load_tile<D, Shape::BM, Shape::Threads, Aligned>(shared.q, a.q.at<T>(at.batch, at.head), a.q.row, first_row, a.queries,
                                                     a.D);
    TileWalk walk(int(ceil_div(a.keys, BN)));
    const auto classify = [&](int tile) { return classify_tile(tile); };
    TileVisit visit = walk.next(classify);
    if (visit.index >= 0) load_keys(0, visit.index);
    for (int stage = 0; visit.index >= 0; stage ^= 1) {
      const TileVisit following = walk.next(classify);
      if (following.index >= 0) {
        load_keys(stage ^ 1, following.index);
        if (simt::mutant(7))
          ptx::cp_async_wait<2>();
        else
          ptx::cp_async_wait<1>();
      } else {
        ptx::cp_async_wait<0>();
      }
      if (!simt::mutant(8) && !(simt::mutant(9) && warp_id() == 1)) __syncthreads();
      step(stage, visit);
      if (!simt::mutant(10)) __syncthreads();
      visit = following;
    }
    finish();
  }

  SIMT_DEVICE void step(int stage, TileVisit visit) {
    FragmentC s[MT][NT] = {};
    scores(s, ref(shared.k, simt::mutant(11) && stage ? 4 : stage));
    SIMT_UNROLL
    for (int m = 0; m < MT; ++m) {
      if (transforms()) SIMT_UNROLL
      for (int n = 0; n < NT; ++n)
        for (int e = 0; e < 4; ++e) s[m][n][e] = score_of(a, s[m][n][e]);
      if (visit.masked && !simt::mutant(12)) mask(s[m], m, visit.index);
      soften(s[m], m);
    }
    values(s, ref(shared.v, stage));
  }

  /// s = q k^T; a key fragment is read once for all row tiles.
  SIMT_DEVICE void scores(FragmentC (&s)[MT][NT], TileRef<T> k) {
    SIMT_UNROLL
    for (int kk = 0; kk < D / 16; ++kk) {
      FragmentA q[MT];
      SIMT_UNROLL
      for (int m = 0; m < MT; ++m) load_a<D>(q[m], ref(shared.q), warp_row(m), kk);
      SIMT_UNROLL
      for (int n = 0; n < NT / 2; ++n) {
        FragmentB b[2];
        load_b_transposed<D>(b, k, n * 16, kk);
        SIMT_UNROLL
        for (int m = 0; m < MT; ++m) {
          ptx::mma_m16n8k16(s[m][2 * n], q[m], b[0], T());
          ptx::mma_m16n8k16(s[m][2 * n + 1], q[m], b[1], T());
        }
      }
    }
  }

  /// acc += p v.
  SIMT_DEVICE void values(const FragmentC (&p)[MT][NT], TileRef<T> v) {
    SIMT_UNROLL
    for (int kk = 0; kk < NT / 2; ++kk) {
      FragmentA rounded[MT];
      SIMT_UNROLL
      for (int m = 0; m < MT; ++m) round_to_a<T>(rounded[m], p[m][2 * kk], p[m][2 * kk + 1]);
      SIMT_UNROLL
      for (int n = 0; n < D / 16; ++n) {
        FragmentB b[2];
        load_b<D>(b, v, kk * 16, n);
        SIMT_UNROLL
        for (int m = 0; m < MT; ++m) {
          ptx::mma_m16n8k16(acc[m][2 * n], rounded[m], b[0], T());
          ptx::mma_m16n8k16(acc[m][2 * n + 1], rounded[m], b[1], T());
        }
      }
    }
  }

  SIMT_DEVICE void mask(FragmentC (&s)[NT], int m, int tile) {
    const bool shifted = is_shifted(a, at.head);
    SIMT_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + warp_row(m) + fragment_row() + half * 8;
      const RowBounds bounds = row_bounds_of(a.pattern, shared.query_layout, 0, min(row, a.queries - 1), shifted);
      SIMT_UNROLL
      for (int n = 0; n < NT; ++n) SIMT_UNROLL
      for (int e = 0; e < 2; ++e) {
        const int key = tile * BN + n * 8 + fragment_column() + e;
        const bool seen = key < a.keys && pair_visible<Shape::Selects>(a, shared.key_layout, bounds, 0, at.batch, at.head,
                                                                       min(row, a.queries - 1), key);
        if (!seen) s[n][2 * half + e] = -INFINITY;
      }
    }
  }

  /// s becomes exp(s - maximum); the accumulator is rescaled where a maximum rose.
  SIMT_DEVICE void soften(FragmentC (&s)[NT], int m) {
    SIMT_UNROLL
    for (int half = 0; half < 2; ++half) {
      float high = top[m][half];
      SIMT_UNROLL
      for (int n = 0; n < NT; ++n) high = fmaxf(high, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
      if (!simt::mutant(13) || lane_id() != 5) high = fmaxf(high, __shfl_xor_sync(~0u, high, 1));
      high = fmaxf(high, __shfl_xor_sync(~0u, high, 2));
      const float base = high == -INFINITY ? 0.f : high * factor();
      const float rescale = ptx::ex2(top[m][half] * factor() - base);
      top[m][half] = high;
      float part = 0;
      SIMT_UNROLL
      for (int n = 0; n < NT; ++n) SIMT_UNROLL
      for (int e = 0; e < 2; ++e) {
        const float p = ptx::ex2(s[n][2 * half + e] * factor() - base);
        s[n][2 * half + e] = p;
        part += p;
      }
      sum[m][half] = sum[m][half] * rescale + part;
      if (!simt::mutant(14)) SIMT_UNROLL
      for (int n = 0; n < D / 8; ++n) acc[m][n][2 * half] *= rescale, acc[m][n][2 * half + 1] *= rescale;
    }
  }

  SIMT_DEVICE void finish() {
    const BlockPlace at = shared.place;
    const int first_row = at.tile * Shape::BM;
    T* out = a.out.at<T>(at.batch, at.head);
    float* lse = a.lse + (int64_t(at.batch) * a.heads + at.head) * a.queries;
    SIMT_UNROLL
    for (int m = 0; m < MT; ++m) {
      float inverse[2];
      SIMT_UNROLL
      for (int half = 0; half < 2; ++half) {
        float total = sum[m][half];
        total += __shfl_xor_sync(~0u, total, 1);
        total += __shfl_xor_sync(~0u, total, 2);
        const bool seen = total > 0;
        inverse[half] = seen ? 1.f / total : 0.f;
        const int row = first_row + warp_row(m) + fragment_row() + half * 8;
        if (row < a.queries && (lane_id() & 3) == 0)
          lse[row] = seen ? (top[m][half] * factor()) * kLn2 + logf(total) : -INFINITY;
      }
      store_accumulator<T, Aligned>(out, a.out.row, acc[m], first_row + warp_row(m), a.queries, 0, a.D, inverse);
    }
  }
};

template <class T, class Shape, bool Aligned>
__global__ void __launch_bounds__(Shape::Threads, 2) attention_fwd_kernel(const AttentionArguments a) {
  auto& shared = *simt::dyn_smem<ForwardShared<T, Shape>>();
  const int tiles = int(ceil_div(a.queries, Shape::BM));
  BlockPlace place = block_place(tiles, a.heads);
  place.tile = tiles - 1 - place.tile;  // late rows see the most keys: start them first
  Forward<T, Shape, Aligned>(a, shared, place).run();
}

}  // namespace longspan::kernels
