// Attention backward of listed key tiles on the CPU; see attention.h.
//
// Keys are walked in ranges. Within one, a task has every `chunks`-th query tile of a key head: it owns those rows of dq,
// and adds dk and dv of the range's keys in a part of its own; the parts are added up in order when the range is done.
#include "attention/gradient.h"
#include "attention/listed.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {
namespace {

constexpr int64_t kRange = 2048;  // keys
constexpr int64_t kTasks = 16;    // that a range is cut into at least

/// One worker's memory: query tiles of the heads that share a list, and up to kListBlocks packed blocks of keys.
template <class T>
struct Scratch {
  T *queries, *query_panels, *dout, *dout_panels, *keys_t, *values_t, *keys, *probabilities, *dscores, *slope, *dq;

  Scratch(Arena& arena, int64_t heads, int64_t dim, bool softcap) {
    const int64_t padded = round_up(dim, kLanes<T>);
    queries = arena.take<T>(heads * kQueryTile * dim);
    query_panels = arena.take<T>(heads * kQueryTile * padded);
    dout = arena.take<T>(heads * kQueryTile * dim);
    dout_panels = arena.take<T>(heads * kQueryTile * padded);
    keys_t = arena.take<T>(kKeyTile * dim);
    values_t = arena.take<T>(kKeyTile * dim);
    keys = arena.take<T>(kKeyTile * padded);
    probabilities = arena.take<T>(kQueryTile * kScoreStride);
    dscores = arena.take<T>(kQueryTile * kScoreStride);
    slope = softcap ? arena.take<T>(kQueryTile * kScoreStride) : nullptr;
    dq = arena.take<T>(kQueryTile * padded);
  }
};

template <class S>
struct Backward {
  using T = Compute<S>;
  const AttentionSpec& spec;
  const AttentionTensors& io;
  const AttentionGradients& grads;
  const Context& context;
  const int64_t B = io.q.size[0], H = io.q.size[1], Q = io.q.size[2], D = io.q.size[3];
  const int64_t K = io.k.size[1], N = io.k.size[2], group = H / K, padded = round_up(D, kLanes<T>);
  const int64_t together = spec.pattern.tile_heads > K ? 1 : group;
  const int64_t chunks = ceil_div(kTasks, B* K);
  const Bounds bounds = build_bounds(spec, B, Q, N, context);
  const Scales<T> scales{spec};
  T* delta = scratch(B * H * Q);
  Accumulator<T> dq = Accumulator<T>::template of<S>(grads.dq, context);
  Accumulator<T> dk = Accumulator<T>::template of<S>(grads.dk, context);
  Accumulator<T> dv = Accumulator<T>::template of<S>(grads.dv, context);
  T *dk_parts = scratch(B * K * chunks * kRange * padded), *dv_parts = scratch(B * K * chunks * kRange * padded);

  T* scratch(int64_t count) const {
    return static_cast<T*>(context.workspace.get(context.workspace.self, std::max<int64_t>(1, count) * int64_t(sizeof(T))));
  }

  /// One head's rows against the packed blocks; dk and dv of key `first` are at the parts' beginning.
  void head_rows(const Scratch<T>& s, int64_t i, const TileRows& rows, const KeyBlocks& blocks, int64_t b, int64_t head,
                 int64_t t0, int64_t n, int64_t first, T* dk_part, T* dv_part) {
    const int columns = blocks.columns();
    const int64_t stat = (b * H + head) * Q + t0;
    block_gemm<T>(n, columns, D, s.queries + i * kQueryTile * D, D, {s.keys_t, D}, s.probabilities, kScoreStride, false);
    const Columns all{0, columns, 0};
    if (spec.softcap > 0) cap_scores<T>(all, n, scales.cap, s.probabilities, s.slope);
    mask_blocks<T>(bounds, rows, blocks, b, N, n, s.probabilities);
    block_gemm<T>(n, columns, D, s.dout + i * kQueryTile * D, D, {s.values_t, D}, s.dscores, kScoreStride, false);
    softmax_gradient<T>(all, n, static_cast<const T*>(io.lse) + stat, delta + stat,
                        grads.dlse ? static_cast<const T*>(grads.dlse) + stat : nullptr, s.slope, s.probabilities,
                        s.dscores);
    for (int block = 0; block < blocks.size; ++block) {
      const int64_t at = (blocks.begin[block] - first) * padded;
      const T *p = s.probabilities + block * kListBlock, *ds = s.dscores + block * kListBlock;
      block_gemm<T, true>(blocks.count[block], padded, n, p, kScoreStride, {s.dout_panels + i * kQueryTile * padded, n},
                          dv_part + at, padded, true);
      block_gemm<T, true>(blocks.count[block], padded, n, ds, kScoreStride, {s.query_panels + i * kQueryTile * padded, n},
                          dk_part + at, padded, true);
    }
    block_gemm<T>(n, padded, columns, s.dscores, kScoreStride, {s.keys, columns}, s.dq, padded, false);
    add_rows<T>(s.dq, padded, n, D, T(spec.scale), dq.row(b, head, t0), dq.stride[2]);
  }

  /// Query tile `tile` of the heads from `head` on, against the keys [first, last).
  void query_tile(const Scratch<T>& s, int64_t b, int64_t head, int64_t tile, int64_t first, int64_t last, T* dk_part,
                  T* dv_part) {
    const int64_t t0 = tile * kQueryTile, n = std::min<int64_t>(kQueryTile, Q - t0), kv = head / group;
    bool loaded = false;
    TileRows rows;
    each_blocks(spec.pattern, bounds, b, head, H, tile, first, last, [&](const KeyBlocks& blocks) {
      if (!loaded) {
        rows.load(spec.pattern, bounds, b, t0, n, false);
        for (int64_t i = 0; i < together; ++i) {
          T *q = s.queries + i * kQueryTile * D, *g = s.dout + i * kQueryTile * D;
          copy_rows<T>(row_of<const S>(io.q, b, head + i, t0), io.q.stride[2], n, D, scales.query, q);
          copy_rows<T>(row_of<const S>(grads.dout, b, head + i, t0), grads.dout.stride[2], n, D, T(1), g);
          pack_panels<T>(q, D, n, D, padded, n, s.query_panels + i * kQueryTile * padded);
          pack_panels<T>(g, D, n, D, padded, n, s.dout_panels + i * kQueryTile * padded);
        }
        loaded = true;
      }
      const int columns = blocks.columns();
      for (int i = 0; i < blocks.size; ++i) {
        const S *k = row_of<const S>(io.k, b, kv, blocks.begin[i]), *v = row_of<const S>(io.v, b, kv, blocks.begin[i]);
        pack_panels_transposed<T>(k, io.k.stride[2], blocks.count[i], D, kListBlock, s.keys_t + i * kListBlock * D);
        pack_panels_transposed<T>(v, io.v.stride[2], blocks.count[i], D, kListBlock, s.values_t + i * kListBlock * D);
        pack_panels<T>(k, io.k.stride[2], blocks.count[i], D, padded, columns, s.keys, i * kListBlock);
        clear_panels<T>(padded, columns, i * kListBlock + blocks.count[i], (i + 1) * kListBlock, s.keys);
      }
      for (int64_t i = 0; i < together; ++i) head_rows(s, i, rows, blocks, b, head + i, t0, n, first, dk_part, dv_part);
    });
  }

  /// Adds up the parts of keys [first, last), in the order of chunks.
  void join(int64_t first, int64_t last) {
    parallel_for(context, B * K * ceil_div(last - first, kBlock), [&](int64_t task, int) {
      const int64_t bk = task % (B * K), begin = first + task / (B * K) * kBlock,
                    end = std::min<int64_t>(last, begin + kBlock);
      for (int64_t c = 0; c < chunks; ++c) {
        const int64_t at = ((bk * chunks + c) * kRange + begin - first) * padded;
        add_rows<T>(dk_parts + at, padded, end - begin, D, scales.key_gradient, dk.row(bk / K, bk % K, begin), dk.stride[2]);
        add_rows<T>(dv_parts + at, padded, end - begin, D, T(1), dv.row(bk / K, bk % K, begin), dv.stride[2]);
      }
    });
  }

  void run() {
    row_products<S>(io, grads, context, delta);
    dq.clear(grads.dq, context);
    dk.clear(grads.dk, context);
    dv.clear(grads.dv, context);
    Arena measure(nullptr);
    Scratch<T>(measure, together, D, spec.softcap > 0);
    char* memory =
        static_cast<char*>(context.workspace.get(context.workspace.self, measure.used() * context.parallel.workers));
    for (int64_t first = 0; first < N; first += kRange) {
      const int64_t last = std::min(N, first + kRange);
      parallel_for(context, B * K * chunks, [&](int64_t task, int worker) {
        Arena arena(memory + measure.used() * worker);
        const Scratch<T> s(arena, together, D, spec.softcap > 0);
        const int64_t bk = task / chunks, chunk = task % chunks, b = bk / K, kv = bk % K;
        T *dk_part = dk_parts + task * kRange * padded, *dv_part = dv_parts + task * kRange * padded;
        std::memset(dk_part, 0, (last - first) * padded * sizeof(T));
        std::memset(dv_part, 0, (last - first) * padded * sizeof(T));
        for (int64_t tile = chunk; tile < bounds.query_tiles; tile += chunks)
          for (int64_t head = kv * group; head < (kv + 1) * group; head += together)
            query_tile(s, b, head, tile, first, last, dk_part, dv_part);
      });
      join(first, last);
    }
    dq.template write<S>(grads.dq, context);
    dk.template write<S>(grads.dk, context);
    dv.template write<S>(grads.dv, context);
  }
};

}  // namespace

void attention_listed_bwd(const AttentionSpec& spec, const AttentionTensors& io, const AttentionGradients& grads,
                          const Context& context) {
  if (io.q.size[0] * io.k.size[1] == 0) return;
  switch (io.q.dtype) {
    case DType::kFloat32: return Backward<float>{spec, io, grads, context}.run();
    case DType::kFloat64: return Backward<double>{spec, io, grads, context}.run();
    case DType::kBFloat16: return Backward<bfloat16>{spec, io, grads, context}.run();
    case DType::kFloat16: return;  // dispatch_cpu.cpp refuses it
  }
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
