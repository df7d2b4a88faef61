// s = (z . D) A^T, ds = dy B, dA = ds^T (z . D) and dB = dy^T s on tensor cores: one read of the wide array.
#include "common/mma_tile.cuh"
#include "lora/low_rank.cuh"

namespace longspan::kernels {
namespace {

constexpr int kThreads = 128;  // 4 warps

template <class T>
struct LowRankShared {
  T x[2][kTileRows * kPanelColumns];
  T factor[kBlockRanks * kPanelColumns];
  T weights[kBlockRanks * kTileRows];  // transposed: rows are ranks
};

template <int Rows, class T>
SIMT_DEVICE void load_rows(T* tile, const T* rows, int64_t stride, int first, int count, int width, bool aligned) {
  if (aligned)
    load_tile<kPanelColumns, Rows, kThreads, true>(tile, rows, stride, first, count, width);
  else
    load_tile<kPanelColumns, Rows, kThreads, false>(tile, rows, stride, first, count, width);
}

/// Puts zeros where the mask drops: the scale 1 / (1 - p) is applied to the sums.
template <class T>
SIMT_DEVICE void drop(T* tile, const Dropout& dropout, int64_t row, int64_t column, uint64_t seed) {
  constexpr int kChunks = kPanelColumns / 8;
  for (int job = int(threadIdx.x); job < kTileRows * kChunks; job += kThreads) {
    const int r = job / kChunks, chunk = job % kChunks;
    const uint32_t bits = kept(dropout, row + r, column + chunk * 8, 8, seed);
    auto* words = reinterpret_cast<uint4*>(tile + SharedTile<kPanelColumns>::offset(r, chunk));
    const auto pair = [&](int i) { return (bits >> 2 * i & 1) * 0xffffu | (bits >> (2 * i + 1) & 1) * 0xffff0000u; };
    const uint4 x = *words;
    *words = {x.x & pair(0), x.y & pair(1), x.z & pair(2), x.w & pair(3)};
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) lora_low_rank_kernel(const LowRankArguments a) {
  auto& shared = *simt::dyn_smem<LowRankShared<T>>();
  const LowRankPlace place = low_rank_place(a);
  const int first_column = place.panel * kPanelColumns;
  const int width = int(a.K - first_column < kPanelColumns ? a.K - first_column : kPanelColumns);
  const int rows = int(place.end - place.begin), tiles = int(ceil_div(rows, kTileRows));
  const T* x = static_cast<const T*>(a.x) + place.begin * a.ldx + first_column;
  const uint64_t seed = a.dropout.seeds ? seed_of(a, place) : 0;
  if (a.row_parts) {
    const T* factor = static_cast<const T*>(a.factor) + int64_t(place.group.padded + place.rank) * a.ldf + first_column;
    load_rows<kBlockRanks>(shared.factor, factor, a.ldf, 0, place.ranks, width, true);
  }
  load_rows<kTileRows>(shared.x[0], x, a.ldx, 0, rows, width, a.aligned);
  ptx::cp_async_commit();

  FragmentC columns[2][8] = {};  // [ranks 16 m + .., columns 64 warp + 8 n + ..]
  for (int tile = 0; tile < tiles; ++tile) {
    const int stage = tile & 1, first = tile * kTileRows;
    if (tile + 1 < tiles) load_rows<kTileRows>(shared.x[stage ^ 1], x, a.ldx, first + kTileRows, rows, width, a.aligned);
    ptx::cp_async_commit();
    if (a.column_parts) {
      for (int job = int(threadIdx.x); job < kTileRows * kBlockRanks; job += kThreads) {
        const int rank = job % kBlockRanks, row = job / kBlockRanks;
        T* to = shared.weights + SharedTile<kTileRows>::offset(rank, row / 8) + row % 8;
        *to = simt::rounded(rank_weight(a, place, place.begin + first + row, rank), T());
      }
    }
    if (simt::mutant(137))
      ptx::cp_async_wait<2>();
    else
      ptx::cp_async_wait<1>();
    __syncthreads();
    if (a.dropout.seeds) {
      drop(shared.x[stage], a.dropout, place.begin + first, first_column, seed);
      if (!simt::mutant(138)) __syncthreads();
    }
    const TileRef<T> z = ref(shared.x, stage);
    if (a.row_parts) {
      const int m = warp_id() % 2 * 16, n = warp_id() / 2 * 16;
      if (n < place.ranks) {
        FragmentC c[2] = {};
        multiply_transposed<T, kPanelColumns, 2>(c, z, m, ref(shared.factor), n);
        SIMT_UNROLL
        for (int half = 0; half < 2; ++half) {
          const int row = m + fragment_row() + half * 8;
          if (first + row >= rows) continue;
          SIMT_UNROLL
          for (int i = 0; i < 2; ++i) {
            float* to = row_part(a, place, place.begin + first + row, n + i * 8 + fragment_column());
            *reinterpret_cast<float2*>(to) = {c[i][2 * half], c[i][2 * half + 1]};
          }
        }
      }
    }
    if (a.column_parts) {
      SIMT_UNROLL
      for (int k = 0; k < kTileRows / 16; ++k) {
        FragmentA weights[2];
        SIMT_UNROLL
        for (int m = 0; m < 2; ++m) load_a<kTileRows>(weights[m], ref(shared.weights), m * 16, k);
        SIMT_UNROLL
        for (int n = 0; n < 4; ++n) {
          FragmentB b[2];
          load_b<kPanelColumns>(b, z, k * 16, warp_id() * 4 + n);
          SIMT_UNROLL
          for (int m = 0; m < 2; ++m) {
            ptx::mma_m16n8k16(columns[m][2 * n], weights[m], b[0], T());
            ptx::mma_m16n8k16(columns[m][2 * n + 1], weights[m], b[1], T());
          }
        }
      }
    }
    if (!simt::mutant(139)) __syncthreads();  // the next tile is copied over this one
  }
  if (!a.column_parts) return;
  SIMT_UNROLL
  for (int m = 0; m < 2; ++m) SIMT_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int rank = m * 16 + fragment_row() + half * 8;
    if (rank >= place.ranks) continue;
    SIMT_UNROLL
    for (int n = 0; n < 8; ++n) {
      const int column = warp_id() * 64 + n * 8 + fragment_column();
      if (column < width) *column_part(a, place, rank, column) = columns[m][n][2 * half];
      if (column + 1 < width) *column_part(a, place, rank, column + 1) = columns[m][n][2 * half + 1];
    }
  }
}

template <class T>
void run(const LowRankArguments& args, dim3 grid, cudaStream_t stream) {
  simt::check(simt::launch(lora_low_rank_kernel<T>, grid, dim3(kThreads), sizeof(LowRankShared<T>), stream, args),
              "lora (low rank)");
}

}  // namespace

void low_rank(DType dtype, const LowRankArguments& args, cudaStream_t stream) {
  int64_t blocks = 0;
  for (int g = 0; g < args.count; ++g) blocks += ceil_div(args.groups[g].ranks, kBlockRanks);
  const int64_t tiles = ceil_div(args.K, kPanelColumns) * ceil_div(args.rows, args.chunk_rows);
  if (blocks * tiles == 0) return;
  const dim3 grid{unsigned(blocks * tiles)};
  if (dtype == DType::kFloat32 || args.wide) return low_rank_fma(dtype, args, grid, stream);
  if (dtype == DType::kBFloat16) return run<__nv_bfloat16>(args, grid, stream);
  run<__half>(args, grid, stream);
}

}  // namespace longspan::kernels
