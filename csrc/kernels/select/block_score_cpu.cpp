// Block-pair scores; see select.h.
#include <cstring>

#include "common/block_gemm.h"
#include "select/select.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {
namespace {

constexpr int64_t kTile = 64;            // rows and keys of a product
constexpr int64_t kStride = kTile + 16;  // off a power of two, so that rows do not share cache sets
constexpr int64_t kRows = kMaxBlock;     // query rows of a task: they share packed keys
constexpr int64_t kTiles = kRows / kTile;

/// One worker's memory: queries [H][kRows][D], one packed key tile, a product, sums over heads of kTiles tiles.
template <class T>
struct Scratch {
  T *queries, *keys, *product, *sums;

  static int64_t elements(int64_t H, int64_t D) { return H * kRows * D + D * kTile + kTile * kStride * (1 + kTiles) + 64; }
  Scratch(T* memory, int64_t H, int64_t D)
      : queries(memory),
        keys(queries + round_up(H * kRows * D, 16)),
        product(keys + D * kTile),
        sums(product + kTile * kStride) {}
};

/// Rows of one task, cut into tiles that do not cross a block.
struct RowTile {
  int64_t block, first, count, place;  // block in its segment; rows; where its queries are
};

template <class T>
T largest(const T* sums, int64_t rows, int64_t row, int64_t columns, int64_t column, bool causal) {
  Vec<T> top{};
  T rest = 0;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t seen = !causal || row + i - column + 1 > columns ? columns : row + i - column + 1;
    const T* line = sums + i * kStride;
    int64_t j = 0;
    for (; j + kLanes<T> <= seen; j += kLanes<T>) top = max<T>(top, load(line + j));
    for (; j < seen; ++j) rest = line[j] > rest ? line[j] : rest;
  }
  const T wide = horizontal_max<T>(top);
  return wide > rest ? wide : rest;
}

template <class S>
void run(const BlockScoreSpec& spec, const BlockScoreTensors& io, const Context& context) {
  using T = Compute<S>;
  const int64_t H = io.q.size[1], D = io.q.size[2], group = H / io.k.size[1];
  const int64_t segments = io.scores.size[0], N = io.scores.size[1];
  const T factor = T(spec.scale / double(H));
  const int64_t per_worker = Scratch<T>::elements(H, D);
  T* memory =
      static_cast<T*>(context.workspace.get(context.workspace.self, per_worker * sizeof(T) * context.parallel.workers));
  T* scores = static_cast<T*>(io.scores.data);
  std::memset(scores, 0, segments * N * N * sizeof(T));

  // A task is some neighbouring blocks of a segment, kRows rows at most.
  const auto row_of = [](const View<3>& x, int64_t row, int64_t head) {
    return static_cast<const S*>(x.data) + row * x.stride[0] + head * x.stride[1];
  };
  const int64_t longest = [&] {
    int64_t most = 1;
    for (int64_t n = io.segments[0]; n < io.segments[segments]; ++n) most = io.counts[n] > most ? io.counts[n] : most;
    return most;
  }();
  const int64_t together = kRows / round_up(longest, kTile) > 0 ? kRows / round_up(longest, kTile) : 1;
  const int64_t tasks_per_segment = ceil_div(N, together);

  parallel_for(context, segments * tasks_per_segment, [&](int64_t task, int worker) {
    const int64_t s = task % segments, first_block = (tasks_per_segment - 1 - task / segments) * together;
    const int64_t base = io.segments[s], blocks = io.segments[s + 1] - base;
    if (first_block >= blocks) return;
    Scratch<T> scratch(memory + worker * per_worker, H, D);
    RowTile tiles[kTiles];
    int64_t used = 0;
    for (int64_t m = first_block; m < blocks && m < first_block + together; ++m)
      for (int64_t r = 0; r < io.counts[base + m]; r += kTile, ++used) {
        const int64_t left = io.counts[base + m] - r;
        tiles[used] = {m, io.starts[base + m] + r, left < kTile ? left : kTile, used * kTile};
        for (int64_t h = 0; h < H; ++h)
          for (int64_t i = 0; i < tiles[used].count; ++i) {
            const S* from = row_of(io.q, tiles[used].first + i, h);
            T* to = scratch.queries + (h * kRows + tiles[used].place + i) * D;
            for (int64_t d = 0; d < D; ++d) to[d] = load_as<T>(from + d);
          }
      }

    for (int64_t n = 0; n < blocks; ++n) {
      if (spec.causal && n > tiles[used - 1].block) break;
      for (int64_t c = 0; c < io.counts[base + n]; c += kTile) {
        const int64_t left = io.counts[base + n] - c, columns = left < kTile ? left : kTile;
        const int64_t first = io.starts[base + n] + c, padded = round_up(columns, kLanes<T>);
        const int64_t from = spec.causal ? [&] {
          int64_t skipped = 0;
          while (skipped < used && tiles[skipped].first + tiles[skipped].count <= first) ++skipped;
          return skipped;
        }()
                                         : 0;
        if (from == used) continue;
        for (int64_t h = 0; h < H; ++h) {
          if (h % group == 0)
            pack_panels_transposed<T>(row_of(io.k, first, h / group), io.k.stride[0], columns, D, padded, scratch.keys);
          for (int64_t i = from; i < used; ++i) {
            block_gemm<T>(tiles[i].count, padded, D, scratch.queries + (h * kRows + tiles[i].place) * D, D,
                          {scratch.keys, D}, scratch.product, kStride, false);
            T* sums = scratch.sums + i * kTile * kStride;
            for (int64_t r = 0; r < tiles[i].count; ++r)
              for (int64_t j = 0; j < padded; j += kLanes<T>) {
                const Vec<T> positive = max<T>(load(scratch.product + r * kStride + j), Vec<T>{});
                T* sum = sums + r * kStride + j;
                store(sum, h == 0 ? positive : load(sum) + positive);
              }
          }
        }
        for (int64_t i = from; i < used; ++i) {
          T* score = scores + (s * N + tiles[i].block) * N + n;
          const T top = factor * largest<T>(scratch.sums + i * kTile * kStride, tiles[i].count, tiles[i].first, columns,
                                            first, spec.causal);
          *score = top > *score ? top : *score;
        }
      }
    }
  });
}

}  // namespace

void block_score(const BlockScoreSpec& spec, const BlockScoreTensors& io, const Context& context) {
  switch (io.q.dtype) {
    case DType::kFloat32: return run<float>(spec, io, context);
    case DType::kFloat64: return run<double>(spec, io, context);
    case DType::kBFloat16: return run<bfloat16>(spec, io, context);
    case DType::kFloat16: return;  // dispatch_cpu.cpp refuses it
  }
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
