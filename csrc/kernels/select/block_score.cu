// Block-pair scores on CUDA; see select.h. A thread block owns one pair of token blocks: tiles of 64 x 64 pairs, products in
// steps of 64 columns of one head, sums over heads in registers.
#include <climits>
#include <stdexcept>

#include "common/fma_tile.cuh"
#include "common/mma_tile.cuh"
#include "common/units.cuh"
#include "select/select.h"

namespace longspan::kernels {
namespace {

constexpr int kTile = 64;      // rows and keys of a tile
constexpr int kThreads = 128;  // 4 warps
constexpr int kStep = 64;      // columns of a head that are in shared memory at a time

/// The parameter of the kernels. Strides in elements.
struct BlockScoreArguments {
  const void *q, *k;
  int64_t q_row, q_head, k_row, k_head;
  const int32_t *starts, *counts, *segments;
  float* scores;
  int H, group, D, N;
  float factor;  // scale / H
  bool causal;
};

/// The pair of this thread block, and the tile pair and step of its walk.
struct Pair {
  int segment, m, n;
  int row, rows, key, keys;  // first token and count of both blocks
  bool empty;

  SIMT_DEVICE explicit Pair(const BlockScoreArguments& a)
      : segment(int(blockIdx.y)), m(int(blockIdx.x) / a.N), n(int(blockIdx.x) % a.N) {
    const int base = a.segments[segment], blocks = a.segments[segment + 1] - base;
    empty = m >= blocks || (n >= blocks && !simt::mutant(150)) || (a.causal && n > m);
    row = empty ? 0 : a.starts[base + m], rows = empty ? 0 : a.counts[base + m];
    key = empty ? 0 : a.starts[base + n], keys = empty ? 0 : a.counts[base + n];
  }
};

/// One step: tiles at `tile_row` and `tile_key` of the pair, columns from `column` of head `head`.
struct Step {
  int tile_row, tile_key, head, column;
};

/// Walks tile pairs, heads and columns; `last` of a head and of a tile pair say when sums are complete.
class Walk {
 public:
  SIMT_DEVICE Walk(const BlockScoreArguments& a, const Pair& pair)
      : columns_(int(ceil_div(a.D, kStep))),
        heads_(a.H),
        key_tiles_(int(ceil_div(pair.keys, kTile))),
        count_(pair.empty ? 0 : int(ceil_div(pair.rows, kTile)) * key_tiles_ * heads_ * columns_) {}
  SIMT_DEVICE int count() const { return count_; }
  SIMT_DEVICE Step at(int index) const {
    const int column = index % columns_, head = index / columns_ % heads_, tile = index / columns_ / heads_;
    return {tile / key_tiles_ * kTile, tile % key_tiles_ * kTile, head, column * kStep};
  }
  SIMT_DEVICE bool ends_head(const Step& step) const { return step.column / kStep == columns_ - 1; }
  SIMT_DEVICE bool ends_tile(const Step& step) const { return ends_head(step) && step.head == heads_ - 1; }

 private:
  int columns_, heads_, key_tiles_, count_;
};

SIMT_DEVICE bool seen(const BlockScoreArguments& a, const Pair& pair, int row, int key) {
  return !a.causal || simt::mutant(151) || pair.key + key <= pair.row + row;
}

/// The largest value of the thread block, times the factor, to the pair's place.
SIMT_DEVICE void finish(const BlockScoreArguments& a, const Pair& pair, float top) {
  SIMT_SHARED(float[kThreads / 32], tops);
  SIMT_UNROLL
  for (int offset = 16; offset > 0; offset /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, offset));
  if (lane_id() == 0) tops[warp_id()] = top;
  if (!simt::mutant(152)) __syncthreads();
  if (threadIdx.x != 0) return;
  for (int warp = 1; warp < (simt::mutant(153) ? 2 : kThreads / 32); ++warp) top = fmaxf(top, tops[warp]);
  a.scores[(int64_t(pair.segment) * a.N + pair.m) * a.N + pair.n] = top * a.factor;
}

template <class T>
struct BlockScoreShared {
  T q[2][kTile * kStep], k[2][kTile * kStep];
};

template <class T, bool Aligned>
SIMT_DEVICE void load_step(const BlockScoreArguments& a, const Pair& pair, const Step& step, BlockScoreShared<T>& shared,
                           int stage) {
  const T* q = static_cast<const T*>(a.q) + pair.row * a.q_row + step.head * a.q_head + step.column;
  const int key_head = simt::mutant(154) ? step.head : step.head / a.group;
  const T* k = static_cast<const T*>(a.k) + pair.key * a.k_row + key_head * a.k_head + step.column;
  const int width = min(kStep, a.D - step.column);
  load_tile<kStep, kTile, kThreads, Aligned>(shared.q[stage], q, a.q_row, step.tile_row, pair.rows, width);
  load_tile<kStep, kTile, kThreads, Aligned>(shared.k[stage], k, a.k_row, step.tile_key, pair.keys, width);
}

/// 16-bit inputs on tensor cores: a warp has 16 rows and 64 keys.
template <class T, bool Aligned>
__global__ void __launch_bounds__(kThreads) block_score_kernel(const BlockScoreArguments a) {
  auto& shared = *simt::dyn_smem<BlockScoreShared<T>>();
  const Pair pair(a);
  const Walk walk(a, pair);
  FragmentC product[8] = {}, sums[8] = {};
  float top = 0;
  if (walk.count() > 0) load_step<T, Aligned>(a, pair, walk.at(0), shared, 0);
  ptx::cp_async_commit();
  for (int i = 0; i < walk.count(); ++i) {
    const int stage = i & 1;
    const Step step = walk.at(i);
    if (i + 1 < walk.count()) load_step<T, Aligned>(a, pair, walk.at(i + 1), shared, stage ^ 1);
    ptx::cp_async_commit();
    if (simt::mutant(155))
      ptx::cp_async_wait<2>();
    else
      ptx::cp_async_wait<1>();
    __syncthreads();
    multiply_transposed<T, kStep>(product, ref(shared.q, stage), warp_id() * 16, ref(shared.k, stage), 0);
    if (!simt::mutant(156)) __syncthreads();  // the next step writes where this one read
    if (!walk.ends_head(step)) continue;
    SIMT_UNROLL
    for (int n = 0; n < 8; ++n) SIMT_UNROLL
    for (int e = 0; e < 4; ++e) {
      sums[n][e] += simt::mutant(157) ? product[n][e] : fmaxf(product[n][e], 0.f);
      if (!simt::mutant(158)) product[n][e] = 0;
    }
    if (!walk.ends_tile(step)) continue;
    SIMT_UNROLL
    for (int n = 0; n < 8; ++n) SIMT_UNROLL
    for (int e = 0; e < 4; ++e) {
      const int row = step.tile_row + warp_id() * 16 + fragment_row() + (e >> 1) * 8;
      const int key = step.tile_key + n * 8 + fragment_column() + (e & 1);
      if (seen(a, pair, row, key)) top = fmaxf(top, sums[n][e]);
      if (!simt::mutant(159)) sums[n][e] = 0;
    }
  }
  finish(a, pair, top);
}

struct BlockScoreFloatShared {
  float q[kTile * FloatTile<kStep>::kStride], k[kTile * FloatTile<kStep>::kStride];
};

/// float32 by plain FMA.
__global__ void __launch_bounds__(kFmaThreads) block_score_f32_kernel(const BlockScoreArguments a, bool aligned) {
  auto& shared = *simt::dyn_smem<BlockScoreFloatShared>();
  const Pair pair(a);
  const Walk walk(a, pair);
  constexpr int kRows = kTile / 16, kKeys = kTile / 8;
  float product[kRows][kKeys] = {}, sums[kRows][kKeys] = {}, top = 0;
  for (int i = 0; i < walk.count(); ++i) {
    const Step step = walk.at(i);
    const float* q = static_cast<const float*>(a.q) + pair.row * a.q_row + step.head * a.q_head + step.column;
    const float* k = static_cast<const float*>(a.k) + pair.key * a.k_row + step.head / a.group * a.k_head + step.column;
    const int width = min(kStep, a.D - step.column);
    load_float_tile<kStep, kTile>(shared.q, q, a.q_row, step.tile_row, pair.rows, width, aligned);
    load_float_tile<kStep, kTile>(shared.k, k, a.k_row, step.tile_key, pair.keys, width, aligned);
    float_tiles_landed();
    add_products<kStep, kTile, kTile>(product, shared.q, shared.k);
    if (!simt::mutant(160)) __syncthreads();  // the next step writes where this one read
    if (!walk.ends_head(step)) continue;
    const bool tile = walk.ends_tile(step);
    SIMT_UNROLL
    for (int r = 0; r < kRows; ++r) SIMT_UNROLL
    for (int c = 0; c < kKeys; ++c) {
      sums[r][c] += simt::mutant(161) ? product[r][c] : fmaxf(product[r][c], 0.f);
      product[r][c] = 0;
      if (!tile) continue;
      if (seen(a, pair, step.tile_row + fma_y() + 16 * r, step.tile_key + fma_x() + 8 * c)) top = fmaxf(top, sums[r][c]);
      sums[r][c] = 0;
    }
  }
  finish(a, pair, top);
}

/// Whether rows of both arrays start on 16 bytes.
bool aligned(const View<3>& x) {
  const int64_t unit = 16 / element_size(x.dtype);
  return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.stride[0] % unit == 0 && x.stride[1] % unit == 0;
}

}  // namespace

void block_score_cuda(const BlockScoreSpec& spec, const BlockScoreTensors& io, const CudaContext& context) {
  const int64_t S = io.scores.size[0], N = io.scores.size[1], H = io.q.size[1];
  if (S * N == 0) return;
  if (N * N > INT_MAX || S > 65535 || io.q.size[0] > INT_MAX)
    throw std::invalid_argument(
        "block_score on CUDA takes at most 46340 blocks a segment, 65535 segments and 2^31 - 1 rows");
  const BlockScoreArguments args{io.q.data,
                                 io.k.data,
                                 io.q.stride[0],
                                 io.q.stride[1],
                                 io.k.stride[0],
                                 io.k.stride[1],
                                 io.starts,
                                 io.counts,
                                 io.segments,
                                 static_cast<float*>(io.scores.data),
                                 int(H),
                                 int(H / io.k.size[1]),
                                 int(io.q.size[2]),
                                 int(N),
                                 float(spec.scale / double(H)),
                                 spec.causal};
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const dim3 grid(unsigned(N * N), unsigned(S)), block(kThreads);
  const bool whole = aligned(io.q) && aligned(io.k);
  const auto launch = [&]<class T>(T) {
    auto kernel = whole ? block_score_kernel<T, true> : block_score_kernel<T, false>;
    simt::check(simt::launch(kernel, grid, block, sizeof(BlockScoreShared<T>), stream, args), "block_score");
  };
  switch (io.q.dtype) {
    case DType::kBFloat16: return launch(__nv_bfloat16());
    case DType::kFloat16: return launch(__half());
    case DType::kFloat32:
      return simt::check(
          simt::launch(block_score_f32_kernel, grid, block, sizeof(BlockScoreFloatShared), stream, args, whole),
          "block_score");
    default: throw std::invalid_argument("block_score on CUDA takes float32, float16 and bfloat16, not float64");
  }
}

}  // namespace longspan::kernels
