#pragma once
#include <vector>

#include "common/context.h"

namespace longspan::kernels {

/// With the sign bit cleared, the bits of a floating-point number order as its magnitude does (NaN above infinity), so an
/// order statistic of magnitudes is one of integers. Float32 and bfloat16 share that order: a bfloat16's bits are the upper
/// half of the same float32's. Bits below are those of float32 without the sign, or of float16 in groups of float16.
///
/// One tensor among many: `size` contiguous elements of float32, bfloat16 or float16 that belong to `group`. The elements of
/// a group are numbered in the order of the list.
struct MagnitudeTensor {
  const void* data;
  DType dtype;
  int64_t size;
  int32_t group;
};

inline constexpr int64_t kUpperBins = 1 << 15;  // by the upper 15 bits: for 16-bit dtypes each bin is one magnitude
inline constexpr int64_t kLowerBins = 1 << 16;  // by the lower 16 bits, of one upper bin

/// bins [G]      null: count by upper bits. Else count the elements with upper bits bins[g] by their lower bits
/// counts        int64 [G, kUpperBins] or [G, kLowerBins], every element of a group once: their sum over ranks is the
///               histogram of a sharded tensor
/// squares [G]   float64: sum of x^2 over the group, or over its elements with upper bits above bins[g]
struct HistogramOutput {
  const int32_t* bins;
  int64_t* counts;
  double* squares;
};

/// Histograms of magnitudes of G groups of tensors in one read. Integers and squares do not depend on the number of threads.
/// Scratch: a worker's counters and a double a chunk. Throws std::invalid_argument for float64, a group out of [0, G), and a
/// group of both float16 and other dtypes.
void magnitude_histogram_cpu(const std::vector<MagnitudeTensor>& tensors, int64_t groups, const HistogramOutput& out,
                             const Context& context);
void magnitude_histogram_cuda(const std::vector<MagnitudeTensor>& tensors, int64_t groups, const HistogramOutput& out,
                              const CudaContext& context);

/// wanted [G]    int64, 1 to the elements of the group
/// bits [G]      int32: bits of the wanted-th largest magnitude as a float32, also for float16
/// cut [G]       int64: of the elements with exactly that magnitude, those numbered below `cut` are among the first
/// `wanted`;
///               the largest int64 where all are, or where `exact` is false; 0 where that magnitude is 0: zeros are kept
///               never
/// kept [G]      int64: elements that are larger, or equal and below the cut
/// squares [2,G] float64: sum of x^2 over those elements, and over the whole group, not finite iff an element is not;
/// without
///               `norms` both are 0, the second NaN where an element is not finite
struct KthOutput {
  const int64_t* wanted;
  bool exact, norms;
  int32_t* bits;
  int64_t *cut, *kept;
  double* squares;
};

/// The k-th largest magnitude of each of G groups of tensors, exact: one read of 16-bit elements, two of float32, one more
/// of a group in which the cut falls among equal ones. Throws as above, and for `wanted` out of range (on the CPU; on CUDA
/// it is clamped).
void kth_magnitude_cpu(const std::vector<MagnitudeTensor>& tensors, int64_t groups, const KthOutput& out,
                       const Context& context);
void kth_magnitude_cuda(const std::vector<MagnitudeTensor>& tensors, int64_t groups, const KthOutput& out,
                        const CudaContext& context);

/// squares [G], float64: the sum of x^2 over each of G groups of tensors in one read, not finite iff an element is not. On
/// the CPU the bits that magnitude_histogram finds. Scratch: a double a chunk. Throws as magnitude_histogram.
void squared_norms_cpu(const std::vector<MagnitudeTensor>& tensors, int64_t groups, double* squares, const Context& context);
void squared_norms_cuda(const std::vector<MagnitudeTensor>& tensors, int64_t groups, double* squares,
                        const CudaContext& context);

}  // namespace longspan::kernels
