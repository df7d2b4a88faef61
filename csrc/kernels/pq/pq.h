#pragma once
// A product quantiser (Jégou et al. 2011) of queries and keys, as SPT uses it (arXiv 2312.10365).
#include "common/context.h"
#include "pq/codebook.h"

namespace longspan::kernels {

/// Numbers of the nearest codewords.
///
///   code[b,h,t,m] = argmin_e sum_j |z[b,h,t,m*d+j] - codebook[g(h),m,e,j]|^p,   g(h) = h / (H/G); ties to the lowest e
///
/// Components behind D count as 0. Differences, powers and sums are rounded one by one in the codebook's dtype, in the order
/// of j, so that every instruction set and CUDA give the same codes. A distance that is not a number is never less: code 0.
///
/// z      [B,H,T,D]   float, double (CPU), bfloat16, float16 (CUDA); any strides with D contiguous; (M-1)d < D <= M d
/// codes  [B,H,T,W]   int32, contiguous; 4 bits a code for E <= 16, 8 for E <= 256, lowest first; unused bits are 0
/// power  p, 1 (SPT) or 2
struct PqTensors {
  View<4> z;
  int32_t* codes;
};

/// Scratch: one transposed group of rows a worker.
void pq_encode_cpu(const Codebook& codebook, int power, const PqTensors& io, const Context& context);
void pq_encode_cuda(const Codebook& codebook, int power, const PqTensors& io, const CudaContext& context);

/// How far soft and hard codewords are from each other and from what they stand for, and its gradients.
///
///   w_e = 1 / max(distance_e, eps), a = w / sum w, soft = sum_e a_e codeword_e, hard = codeword_code
///   loss = mean (soft - hard)^2 + mean (z - hard)^2        means over all B H T D components
///
/// dcodebook [G,M,E,d] and dz (like z, or null data) are those of `factor` times the loss. loss is one number. All of the
/// codebook's dtype but dz. Sums are in a fixed order. Source: SPT's code (soft assignment as in DKM, Cho et al. 2022).
struct PqLossTensors {
  View<4> z, dz;
  const int32_t* codes;
  void *loss, *dcodebook;
};

/// Scratch: a codebook's gradient and a sum per chunk of kPqChunk vectors.
void pq_loss_cpu(const Codebook& codebook, int power, double eps, double factor, const PqLossTensors& io,
                 const Context& context);
void pq_loss_cuda(const Codebook& codebook, int power, double eps, double factor, const PqLossTensors& io,
                  const CudaContext& context);

/// What k-means needs: per codeword the sum of the vectors that have its number, and how many they are.
///
/// sums [G,M,E,d] float (double for double z), counts int32 [G,M,E]; M, E and d are those of `codebook`, whose data is not
/// read. Sums are in a fixed order.
struct PqStatistics {
  View<4> z;
  const int32_t* codes;
  void* sums;
  int32_t* counts;
};

/// Scratch: sums and counts per chunk of kPqChunk vectors.
void pq_stats_cpu(const Codebook& codebook, const PqStatistics& io, const Context& context);
void pq_stats_cuda(const Codebook& codebook, const PqStatistics& io, const CudaContext& context);

inline constexpr int kPqChunk = 512;  // vectors of one head that are summed together

}  // namespace longspan::kernels
