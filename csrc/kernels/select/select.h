#pragma once
#include "common/context.h"

namespace longspan::kernels {

/// Scores of pairs of token blocks (LeMo, Wang et al. 2025, section 3: informativeness from attention scores).
///
///   A[s,m,n] = scale / H * max over rows i of block m, j of block n of sum_h max(<q[i,h], k[j,h / (H/K)]>, 0)
///
/// for the blocks m, n of segment s; 0 where the segment has no such block. With `causal` rows j > i count 0. The sum over m
/// is a block's score.
struct BlockScoreSpec {
  double scale;
  bool causal;
};

/// q [M,H,D], k [M,K,D]      float, double (CPU), bfloat16, float16 (CUDA); any strides with D contiguous; K divides H;
///                           1 <= D <= 256; what is 16-bit is multiplied in float
/// starts, counts [blocks]   rows [start, start + count) of a block; count <= kMaxBlock; a segment's blocks follow each
/// other segments [S+1]            block numbers at which segments begin scores [S,N,N]            statistics, contiguous; N
/// is at least the most blocks of a segment
struct BlockScoreTensors {
  View<3> q, k;
  const int32_t *starts, *counts, *segments;
  View<3> scores;
};

inline constexpr int kMaxBlock = 256;

/// Nothing of the size T x T exists: a tile of 64 x 64 pairs is summed over heads and only its maximum is kept. Scratch: the
/// queries of 256 rows and one packed key tile a worker. The result does not depend on the worker count. Throws
/// std::invalid_argument that names a block that is empty, too long, or not inside q.
void block_score_cpu(const BlockScoreSpec& spec, const BlockScoreTensors& io, const Context& context);

/// The same on CUDA for float, bfloat16 and float16 (tensor cores, float sums). Blocks are not checked.
void block_score_cuda(const BlockScoreSpec& spec, const BlockScoreTensors& io, const CudaContext& context);

}  // namespace longspan::kernels
