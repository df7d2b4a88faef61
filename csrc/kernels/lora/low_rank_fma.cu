// The low-rank products by FMA: float32, and 16-bit rows with adapters in float32, whose gradients are as exact as floats.
// The same blocks as on tensor cores.
#include "common/fma_tile.cuh"
#include "common/units.cuh"
#include "lora/low_rank.cuh"

namespace longspan::kernels {
namespace {

constexpr int kFactorFloats = kBlockRanks * FloatTile<kPanelColumns>::kStride;

struct FloatLowRankShared {
  float x[kTileRows * FloatTile<kPanelColumns>::kStride];
  float factor[kFactorFloats];
  float weights[kBlockRanks * kTileRows];  // [rows, ranks]
};

SIMT_DEVICE void drop(float* tile, const Dropout& dropout, int64_t row, int64_t column, uint64_t seed) {
  constexpr int kUnits = kPanelColumns / 4;
  for (int job = int(threadIdx.x); job < kTileRows * kUnits; job += kFmaThreads) {
    const int r = job / kUnits, unit = job % kUnits;
    const uint32_t bits = kept(dropout, row + r, column + unit * 4, 4, seed);
    float* to = tile + r * FloatTile<kPanelColumns>::kStride + unit * 4;
    SIMT_UNROLL
    for (int e = 0; e < 4; ++e)
      if (!(bits >> e & 1)) to[e] = 0;
  }
}

SIMT_DEVICE void load_rows(float* tile, const float* rows, int64_t stride, int first, int count, int width, bool aligned) {
  load_float_tile<kPanelColumns, kTileRows>(tile, rows, stride, first, count, width, aligned);
}
template <class T>
SIMT_DEVICE void load_rows(float* tile, const T* rows, int64_t stride, int first, int count, int width, bool aligned) {
  constexpr int kUnits = kPanelColumns / kUnit<T>;
  for (int job = int(threadIdx.x); job < kTileRows * kUnits; job += kFmaThreads) {
    const int row = job / kUnits, column = job % kUnits * kUnit<T>;
    float values[kUnit<T>] = {};
    if (first + row < count && column < width) load_unit(values, rows + (first + row) * stride, column, width, aligned);
    SIMT_UNROLL
    for (int e = 0; e < kUnit<T>; ++e) tile[row * FloatTile<kPanelColumns>::kStride + column + e] = values[e];
  }
}

template <class T>
__global__ void __launch_bounds__(kFmaThreads) lora_low_rank_fma_kernel(const LowRankArguments a) {
  auto& shared = *simt::dyn_smem<FloatLowRankShared>();
  const LowRankPlace place = low_rank_place(a);
  const int first_column = place.panel * kPanelColumns;
  const int width = int(a.K - first_column < kPanelColumns ? a.K - first_column : kPanelColumns);
  const int rows = int(place.end - place.begin);
  const T* x = static_cast<const T*>(a.x) + place.begin * a.ldx + first_column;
  const uint64_t seed = a.dropout.seeds ? seed_of(a, place) : 0;
  if (a.row_parts) {
    const float* factor =
        static_cast<const float*>(a.factor) + int64_t(place.group.padded + place.rank) * a.ldf + first_column;
    load_float_tile<kPanelColumns, kBlockRanks>(shared.factor, factor, a.ldf, 0, place.ranks, width, true);
  }
  float4 columns[kBlockRanks / 16][kPanelColumns / 32] = {};
  for (int first = 0; first < rows; first += kTileRows) {
    load_rows(shared.x, x, a.ldx, first, rows, width, a.aligned);
    if (a.column_parts)
      for (int job = int(threadIdx.x); job < kTileRows * kBlockRanks; job += kFmaThreads)
        shared.weights[job] = rank_weight(a, place, place.begin + first + job / kBlockRanks, job % kBlockRanks);
    float_tiles_landed();
    if (a.dropout.seeds) {
      drop(shared.x, a.dropout, place.begin + first, first_column, seed);
      __syncthreads();
    }
    if (a.row_parts) {
      float c[kTileRows / 16][kBlockRanks / 8];
      multiply_rows<kPanelColumns, kTileRows, kBlockRanks>(c, shared.x, shared.factor);
      SIMT_UNROLL
      for (int i = 0; i < kTileRows / 16; ++i) SIMT_UNROLL
      for (int j = 0; j < kBlockRanks / 8; ++j) {
        const int row = first + fma_y() + 16 * i, rank = fma_x() + 8 * j;
        if (row < rows && rank < place.ranks) *row_part(a, place, place.begin + row, rank) = c[i][j];
      }
    }
    if (a.column_parts) accumulate<kPanelColumns, kBlockRanks, kTileRows, 1, kBlockRanks>(columns, shared.weights, shared.x);
    if (!simt::mutant(140)) __syncthreads();
  }
  if (!a.column_parts) return;
  SIMT_UNROLL
  for (int i = 0; i < kBlockRanks / 16; ++i) {
    const int rank = fma_y() + 16 * i;
    if (rank >= place.ranks) continue;
    SIMT_UNROLL
    for (int n = 0; n < kPanelColumns / 32; ++n) {
      const float values[4] = {columns[i][n].x, columns[i][n].y, columns[i][n].z, columns[i][n].w};
      SIMT_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int column = 4 * (fma_x() + 8 * n) + e;
        if (column < width) *column_part(a, place, rank, column) = values[e];
      }
    }
  }
}

}  // namespace

void low_rank_fma(DType dtype, const LowRankArguments& args, dim3 grid, cudaStream_t stream) {
  dispatch_lora(dtype, [&](auto s) {
    simt::check(simt::launch(lora_low_rank_fma_kernel<decltype(s)>, grid, dim3(kFmaThreads), sizeof(FloatLowRankShared),
                             stream, args),
                "lora (low rank)");
  });
}

}  // namespace longspan::kernels
