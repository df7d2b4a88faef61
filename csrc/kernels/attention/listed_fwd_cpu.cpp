// Attention forward of listed key tiles on the CPU: a task is one query tile of the heads that share a list, whose blocks of
// keys are packed side by side; see attention.h.
#include "attention/listed.h"
#include "attention/online.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {
namespace {

template <class S>
void forward(const AttentionSpec& spec, const AttentionTensors& io, const Context& context) {
  using T = Compute<S>;
  const int64_t B = io.q.size[0], H = io.q.size[1], Q = io.q.size[2], D = io.q.size[3];
  const int64_t K = io.k.size[1], N = io.k.size[2], padded = round_up(D, kLanes<T>);
  const Bounds bounds = build_bounds(spec, B, Q, N, context);
  const Scales<T> scales(spec);
  // Heads of a key head that share a list are multiplied with one packed tile.
  const int64_t together = spec.pattern.tile_heads > K ? 1 : H / K, parts = H / together;

  Arena measure(nullptr);
  FwdScratch<T>(measure, together, D);
  char* memory =
      static_cast<char*>(context.workspace.get(context.workspace.self, measure.used() * context.parallel.workers));
  parallel_for(context, B * parts * bounds.query_tiles, [&](int64_t task, int worker) {
    Arena arena(memory + measure.used() * worker);
    FwdScratch<T> scratch(arena, together, D);
    const int64_t tile = bounds.query_tiles - 1 - task / (B * parts);  // late rows tend to have longer lists
    const int64_t b = task % (B * parts) / parts, head = task % parts * together, kv = head / (H / K);
    const int64_t first = tile * kQueryTile, n = std::min<int64_t>(kQueryTile, Q - first);
    for (int64_t i = 0; i < together; ++i) {
      copy_rows<T>(row_of<const S>(io.q, b, head + i, first), io.q.stride[2], n, D, scales.query,
                   scratch.queries + i * kQueryTile * D);
      for (int r = 0; r < kQueryTile; ++r) scratch.row_max[i * kQueryTile + r] = kMinusInfinity<T>;
    }
    std::memset(scratch.out, 0, together * kQueryTile * padded * sizeof(T));
    std::memset(scratch.row_sum, 0, together * kQueryTile * sizeof(T));
    TileRows rows;
    rows.load(spec.pattern, bounds, b, first, n, false);

    each_blocks(spec.pattern, bounds, b, head, H, tile, 0, N, [&](const KeyBlocks& blocks) {
      const int columns = blocks.columns();
      for (int i = 0; i < blocks.size; ++i) {
        const S *k = row_of<const S>(io.k, b, kv, blocks.begin[i]), *v = row_of<const S>(io.v, b, kv, blocks.begin[i]);
        pack_panels_transposed<T>(k, io.k.stride[2], blocks.count[i], D, kListBlock, scratch.keys + i * kListBlock * D);
        pack_panels<T>(v, io.v.stride[2], blocks.count[i], D, padded, columns, scratch.values, i * kListBlock);
        clear_panels<T>(padded, columns, i * kListBlock + blocks.count[i], (i + 1) * kListBlock, scratch.values);
      }
      for (int64_t i = 0; i < together; ++i) {
        block_gemm<T>(n, columns, D, scratch.queries + i * kQueryTile * D, D, {scratch.keys, D}, scratch.scores,
                      kScoreStride, false);
        const Columns all{0, columns, 0};
        if (spec.softcap > 0) cap_scores<T>(all, n, scales.cap, scratch.scores, nullptr);
        mask_blocks<T>(bounds, rows, blocks, b, N, n, scratch.scores);
        T* out = scratch.out + i * kQueryTile * padded;
        softmax_step<T>(all, n, padded, scratch.scores, out, scratch.row_max + i * kQueryTile,
                        scratch.row_sum + i * kQueryTile);
        block_gemm<T>(n, padded, columns, scratch.scores, kScoreStride, {scratch.values, columns}, out, padded, true);
      }
    });
    for (int64_t i = 0; i < together; ++i)
      write_rows<S>(io, b, head + i, first, n, scratch.out + i * kQueryTile * padded, padded,
                    scratch.row_max + i * kQueryTile, scratch.row_sum + i * kQueryTile);
  });
}

}  // namespace

void attention_listed_fwd(const AttentionSpec& spec, const AttentionTensors& io, const Context& context) {
  switch (io.q.dtype) {
    case DType::kFloat32: return forward<float>(spec, io, context);
    case DType::kFloat64: return forward<double>(spec, io, context);
    case DType::kBFloat16: return forward<bfloat16>(spec, io, context);
    case DType::kFloat16: return;  // dispatch_cpu.cpp refuses it
  }
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
