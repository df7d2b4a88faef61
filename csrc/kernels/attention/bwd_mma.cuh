#pragma once
// Attention backward on tensor cores, without atomics (FlashAttention-2, Dao 2023, section 3.1.2, split into two kernels):
//   p = 2^(z - lse)   dp = dout v^T   ds = p (dp - delta)   dv = p^T dout   dk = scale ds^T q   dq = scale ds k
// One kernel owns key tiles and walks query tiles of all heads of the group; the other owns query tiles and walks keys.
#include <cmath>

#include "attention/device.cuh"
#include "common/mma_tile.cuh"

namespace longspan::kernels {

/// Tile sizes of dK, dV. Each warp owns 16 keys and `D / Parts` columns of their gradients; the parts are other blocks.
template <int D_, int BM_, int Warps_, int Parts_, bool Selects_ = false>
struct KeyGradientShape {
  static constexpr int D = D_, BM = BM_, Warps = Warps_, Parts = Parts_;
  static constexpr bool Selects = Selects_;
  static constexpr int BN = 16 * Warps, Threads = 32 * Warps;
};

template <class T, class Shape>
struct KeyGradientShared {
  T k[Shape::BN * Shape::D], v[Shape::BN * Shape::D];
  T q[2][Shape::BM * Shape::D], dout[2][Shape::BM * Shape::D];
  float lse[2][Shape::BM], delta[2][Shape::BM];
};

template <class T, class Shape, bool Aligned>
struct KeyGradient {
  static constexpr int D = Shape::D, BM = Shape::BM, BN = Shape::BN, NT = BM / 8, Columns = D / Shape::Parts / 8;
  const AttentionArguments& a;
  KeyGradientShared<T, Shape>& shared;
  BlockPlace at;  // tile and head of the keys
  int part;       // of the gradients' columns
  int first_key, group;
  FragmentC dk[Columns] = {}, dv[Columns] = {};

  SIMT_DEVICE KeyGradient(const AttentionArguments& args, KeyGradientShared<T, Shape>& memory, BlockPlace place, int part_)
      : a(args), shared(memory), at(place), part(part_), first_key(place.tile * BN), group(args.heads / args.key_heads) {}

  SIMT_DEVICE void load_queries(int stage, int head, int tile) {
    load_tile<D, BM, Shape::Threads, Aligned>(shared.q[stage], a.q.at<T>(at.batch, head), a.q.row, tile * BM, a.queries,
                                              a.D);
    load_tile<D, BM, Shape::Threads, Aligned>(shared.dout[stage], a.dout.at<T>(at.batch, head), a.dout.row, tile * BM,
                                              a.queries, a.D);
    ptx::cp_async_commit();
    const int64_t statistics = (int64_t(at.batch) * a.heads + head) * a.queries;
    for (int i = int(threadIdx.x); i < BM; i += Shape::Threads) {
      const int row = tile * BM + i;
      shared.lse[stage][i] = row < a.queries ? a.lse_log2[statistics + row] : INFINITY;
      shared.delta[stage][i] = row < a.queries ? a.delta[statistics + row] : 0.f;
    }
  }

  SIMT_DEVICE Visibility classify_tile(int head, int tile) const {
    if (!tile_listed(a, at.batch, head, tile * BM, first_key)) return Visibility::kSkip;
    const RowRange rows = range_of(row_runs(a, at.batch, head), a.ranges.query_runs, tile * BM, BM);
    const KeyRange keys = range_of(key_runs(a, at.batch), a.ranges.key_runs, first_key, BN);
    // Rows past the end have p = 0; keys past the end, whose p can be anything, are rows of products that are not stored.
    return classify(rows, keys, a.pattern.sinks);
  }

  SIMT_DEVICE void run() {
    load_tile<D, BN, Shape::Threads, Aligned>(shared.k, a.k.at<T>(at.batch, at.head), a.k.row, first_key, a.keys, a.D);
    load_tile<D, BN, Shape::Threads, Aligned>(shared.v, a.v.at<T>(at.batch, at.head), a.v.row, first_key, a.keys, a.D);
    for (int i = 0; i < group; ++i) walk_head(at.head * group + i);
    const float for_v[2] = {1.f, 1.f}, for_k[2] = {a.scale, a.scale};
    const int row = first_key + warp_id() * 16;
    const int column = part * Columns * 8;
    store_accumulator<T, Aligned>(a.dv.at<T>(at.batch, at.head), a.dv.row, dv, row, a.keys, column, a.D, for_v);
    store_accumulator<T, Aligned>(a.dk.at<T>(at.batch, at.head), a.dk.row, dk, row, a.keys, column, a.D,
                                  simt::mutant(21) ? for_v : for_k);
  }

  SIMT_DEVICE void walk_head(int head) {
    TileWalk walk(int(ceil_div(a.queries, BM)));
    const auto classify = [&](int tile) { return classify_tile(head, tile); };
    TileVisit visit = walk.next(classify);
    if (visit.index >= 0) load_queries(0, head, visit.index);
    for (int stage = 0; visit.index >= 0; stage ^= 1) {
      const TileVisit following = walk.next(classify);
      if (following.index >= 0) {
        load_queries(stage ^ 1, head, following.index);
        if (simt::mutant(22))
          ptx::cp_async_wait<2>();
        else
          ptx::cp_async_wait<1>();
      } else {
        ptx::cp_async_wait<0>();
      }
      if (!simt::mutant(23)) __syncthreads();
      step(stage, head, visit);
      if (!simt::mutant(24)) __syncthreads();
      visit = following;
    }
  }

  SIMT_DEVICE void step(int stage, int head, TileVisit visit) {
    FragmentC p[NT] = {}, ds[NT] = {};
    multiply_transposed<T, D>(p, ref(shared.k), warp_id() * 16, ref(shared.q, stage), 0);
    multiply_transposed<T, D>(ds, ref(shared.v), warp_id() * 16, ref(shared.dout, stage), 0);
    if (has_softcap(a))
      elements<true>(p, ds, stage);
    else
      elements<false>(p, ds, stage);
    if (visit.masked && !simt::mutant(26)) mask(p, ds, head, visit.index);
    multiply_rounded<T, D>(dv, p, ref(shared.dout, simt::mutant(27) ? stage ^ 1 : stage), part * Columns / 2);
    multiply_rounded<T, D>(dk, ds, ref(shared.q, stage), part * Columns / 2);
  }

  template <bool Capped>
  SIMT_DEVICE void elements(FragmentC (&p)[NT], FragmentC (&ds)[NT], int stage) {
    SIMT_UNROLL
    for (int n = 0; n < NT; ++n) SIMT_UNROLL
    for (int e = 0; e < 2; ++e) {
      const int i = n * 8 + fragment_column() + e;
      const float lse = shared.lse[stage][i], delta = simt::mutant(25) ? 0.f : shared.delta[stage][i];
      SIMT_UNROLL
      for (int half = 0; half < 2; ++half) differentiate<Capped>(a, p[n][2 * half + e], ds[n][2 * half + e], lse, delta);
    }
  }

  SIMT_DEVICE void mask(FragmentC (&p)[NT], FragmentC (&ds)[NT], int head, int tile) {
    const bool shifted = is_shifted(a, head);
    SIMT_UNROLL
    for (int n = 0; n < NT; ++n) SIMT_UNROLL
    for (int e = 0; e < 2; ++e) {
      const int row = min(tile * BM + n * 8 + fragment_column() + e, a.queries - 1);
      const RowBounds bounds = row_bounds_of(a, at.batch, row, shifted);
      SIMT_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int key = min(first_key + warp_id() * 16 + fragment_row() + half * 8, a.keys - 1);
        const bool seen = pair_visible<Shape::Selects>(a, a.key_layout, bounds, at.batch, at.batch, head, row, key);
        if (!seen) p[n][2 * half + e] = 0.f, ds[n][2 * half + e] = 0.f;
      }
    }
  }
};

template <class T, class Shape, bool Aligned>
__global__ void __launch_bounds__(Shape::Threads, 2) attention_bwd_keys_kernel(const AttentionArguments a) {
  auto& shared = *simt::dyn_smem<KeyGradientShared<T, Shape>>();
  const int tiles = int(ceil_div(a.keys, Shape::BN));
  BlockPlace place = block_place(tiles * Shape::Parts, a.key_heads);
  const int part = place.tile % Shape::Parts;
  place.tile /= Shape::Parts;  // early keys are seen by the most queries and start first
  KeyGradient<T, Shape, Aligned>(a, shared, place, part).run();
}

/// Tile sizes of dQ. Each warp owns 16 query rows; keys come BN at a time.
template <int D_, int BN_, int Warps_, bool Selects_ = false>
struct QueryGradientShape {
  static constexpr int D = D_, BN = BN_, Warps = Warps_;
  static constexpr bool Selects = Selects_;
  static constexpr int BM = 16 * Warps, Threads = 32 * Warps;
};

template <class T, class Shape>
struct QueryGradientShared {
  T q[Shape::BM * Shape::D], dout[Shape::BM * Shape::D];
  T k[2][Shape::BN * Shape::D], v[2][Shape::BN * Shape::D];
};

template <class T, class Shape, bool Aligned>
struct QueryGradient {
  static constexpr int D = Shape::D, BM = Shape::BM, BN = Shape::BN, NT = BN / 8;
  const AttentionArguments& a;
  QueryGradientShared<T, Shape>& shared;
  BlockPlace at;
  int first_row, kv_head;
  FragmentC dq[D / 8] = {};
  float lse[2], delta[2];

  SIMT_DEVICE QueryGradient(const AttentionArguments& args, QueryGradientShared<T, Shape>& memory, BlockPlace place)
      : a(args), shared(memory), at(place), first_row(place.tile * BM), kv_head(place.head / (args.heads / args.key_heads)) {
    const int64_t statistics = (int64_t(at.batch) * a.heads + at.head) * a.queries;
    SIMT_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + warp_id() * 16 + fragment_row() + half * 8;
      lse[half] = row < a.queries ? a.lse_log2[statistics + row] : INFINITY;
      delta[half] = row < a.queries ? a.delta[statistics + row] : 0.f;
    }
  }

  SIMT_DEVICE void load_keys(int stage, int tile) {
    load_tile<D, BN, Shape::Threads, Aligned>(shared.k[stage], a.k.at<T>(at.batch, kv_head), a.k.row, tile * BN, a.keys,
                                              a.D);
    load_tile<D, BN, Shape::Threads, Aligned>(shared.v[stage], a.v.at<T>(at.batch, kv_head), a.v.row, tile * BN, a.keys,
                                              a.D);
    ptx::cp_async_commit();
  }

  SIMT_DEVICE Visibility classify_tile(int tile) const {
    if (!tile_listed(a, at.batch, at.head, first_row, tile * BN)) return Visibility::kSkip;
    const RowRange rows = range_of(row_runs(a, at.batch, at.head), a.ranges.query_runs, first_row, BM);
    const KeyRange keys = range_of(key_runs(a, at.batch), a.ranges.key_runs, tile * BN, BN);
    const Visibility whole = classify(rows, keys, a.pattern.sinks);
    // Keys past the end are zeros, but their p can be infinite: they must not count. Rows past the end are not stored.
    const bool ragged = (tile + 1) * BN > a.keys && !simt::mutant(36);
    return whole == Visibility::kFull && ragged ? Visibility::kPartial : whole;
  }

  SIMT_DEVICE void run() {
    load_tile<D, BM, Shape::Threads, Aligned>(shared.q, a.q.at<T>(at.batch, at.head), a.q.row, first_row, a.queries, a.D);
    load_tile<D, BM, Shape::Threads, Aligned>(shared.dout, a.dout.at<T>(at.batch, at.head), a.dout.row, first_row, a.queries,
                                              a.D);
    TileWalk walk(int(ceil_div(a.keys, BN)));
    const auto classify = [&](int tile) { return classify_tile(tile); };
    TileVisit visit = walk.next(classify);
    if (visit.index >= 0) load_keys(0, visit.index);
    for (int stage = 0; visit.index >= 0; stage ^= 1) {
      const TileVisit following = walk.next(classify);
      if (following.index >= 0) {
        load_keys(stage ^ 1, following.index);
        ptx::cp_async_wait<1>();
      } else {
        ptx::cp_async_wait<0>();
      }
      if (!simt::mutant(31) && !(simt::mutant(32) && warp_id() == 0)) __syncthreads();
      step(stage, visit);
      if (!simt::mutant(33)) __syncthreads();
      visit = following;
    }
    const float factor[2] = {a.scale, a.scale};
    store_accumulator<T, Aligned>(a.dq.at<T>(at.batch, at.head), a.dq.row, dq, first_row + warp_id() * 16, a.queries, 0, a.D,
                                  factor);
  }

  SIMT_DEVICE void step(int stage, TileVisit visit) {
    FragmentC p[NT] = {}, ds[NT] = {};
    multiply_transposed<T, D>(p, ref(shared.q), warp_id() * 16, ref(shared.k, stage), 0);
    multiply_transposed<T, D>(ds, ref(shared.dout), warp_id() * 16, ref(shared.v, stage), 0);
    if (has_softcap(a))
      elements<true>(p, ds);
    else
      elements<false>(p, ds);
    if (visit.masked && !simt::mutant(35)) mask(ds, visit.index);
    multiply_rounded<T, D>(dq, ds, ref(shared.k, stage));
  }

  template <bool Capped>
  SIMT_DEVICE void elements(FragmentC (&p)[NT], FragmentC (&ds)[NT]) {
    SIMT_UNROLL
    for (int n = 0; n < NT; ++n) SIMT_UNROLL
    for (int e = 0; e < 4; ++e)
      differentiate<Capped>(a, p[n][e], ds[n][e], lse[e >> 1], delta[simt::mutant(34) ? 0 : e >> 1]);
  }

  SIMT_DEVICE void mask(FragmentC (&ds)[NT], int tile) {
    const bool shifted = is_shifted(a, at.head);
    SIMT_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int row = min(first_row + warp_id() * 16 + fragment_row() + half * 8, a.queries - 1);
      const RowBounds bounds = row_bounds_of(a, at.batch, row, shifted);
      SIMT_UNROLL
      for (int n = 0; n < NT; ++n) SIMT_UNROLL
      for (int e = 0; e < 2; ++e) {
        const int key = tile * BN + n * 8 + fragment_column() + e;
        const bool seen =
            key < a.keys && pair_visible<Shape::Selects>(a, a.key_layout, bounds, at.batch, at.batch, at.head, row, key);
        if (!seen) ds[n][2 * half + e] = 0.f;
      }
    }
  }
};

template <class T, class Shape, bool Aligned>
__global__ void __launch_bounds__(Shape::Threads, 2) attention_bwd_queries_kernel(const AttentionArguments a) {
  auto& shared = *simt::dyn_smem<QueryGradientShared<T, Shape>>();
  const int tiles = int(ceil_div(a.queries, Shape::BM));
  BlockPlace place = block_place(tiles, a.heads);
  place.tile = tiles - 1 - place.tile;  // late rows see the most keys: start them first
  QueryGradient<T, Shape, Aligned>(a, shared, place).run();
}

}  // namespace longspan::kernels
