#pragma once
// What the low-rank kernels of both kinds share: where a block works.
#include "lora/launch.h"

namespace longspan::kernels {

/// Rows of x that are in shared memory at a time.
inline constexpr int kTileRows = 32;

/// One block: ranks [rank, rank + ranks) of a group, columns [column, column + 256), the rows of a chunk. Blocks of the same
/// rows and columns follow each other, so that one of them reads x from memory and the others from the L2 cache.
struct LowRankPlace {
  int rank, ranks;  // of the group; padded
  RankGroup group;
  int panel;
  int64_t chunk, begin, end;
};

SIMT_DEVICE int rank_blocks(const RankGroup& group) { return int(ceil_div(group.ranks, kBlockRanks)); }

SIMT_DEVICE LowRankPlace low_rank_place(const LowRankArguments& a) {
  int blocks = 0;
  for (int g = 0; g < a.count; ++g) blocks += rank_blocks(a.groups[g]);
  const int panels = int(ceil_div(a.K, kPanelColumns)), tile = int(blockIdx.x) / blocks;
  int block = int(blockIdx.x) % blocks, g = 0;
  while (block >= rank_blocks(a.groups[g])) block -= rank_blocks(a.groups[g++]);
  LowRankPlace place;
  place.group = a.groups[g];
  place.rank = block * kBlockRanks;
  place.ranks = min(kBlockRanks, int(round_up(place.group.ranks, kRankStep)) - place.rank);
  place.panel = tile % panels, place.chunk = tile / panels;
  place.begin = place.chunk * a.chunk_rows;
  place.end = place.begin + a.chunk_rows < a.rows ? place.begin + a.chunk_rows : a.rows;
  return place;
}

/// The weight of (row, rank of the block); 0 outside.
SIMT_DEVICE float rank_weight(const LowRankArguments& a, const LowRankPlace& place, int64_t row, int rank) {
  const bool inside = row < place.end && place.rank + rank < place.group.ranks;
  return inside ? a.weights[row * a.ldw + place.group.column + place.rank + rank] : 0.f;
}

SIMT_DEVICE float* row_part(const LowRankArguments& a, const LowRankPlace& place, int64_t row, int rank) {
  return a.row_parts + (place.panel * a.rows + row) * a.width + place.group.padded + place.rank + rank;
}
SIMT_DEVICE float* column_part(const LowRankArguments& a, const LowRankPlace& place, int rank, int column) {
  return a.column_parts + (place.chunk * a.width + place.group.padded + place.rank + rank) * a.K +
         int64_t(place.panel) * kPanelColumns + column;
}

SIMT_DEVICE uint64_t seed_of(const LowRankArguments& a, const LowRankPlace& place) {
  return uint64_t(a.dropout.seeds[simt::mutant(136) ? 0 : place.group.projection]);
}

/// By FMA, for rows of any dtype.
void low_rank_fma(DType dtype, const LowRankArguments& args, dim3 grid, cudaStream_t stream);

}  // namespace longspan::kernels
