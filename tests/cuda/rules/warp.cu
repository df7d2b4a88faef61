// Warp operations: lanes that are missing, and the values of each operation.
#include "rules/case.h"

namespace rules::warp {
namespace {

constexpr uint32_t kAll = ~0u;

/// Lanes that skip a shuffle which names them.
__global__ void skip_kernel(const int* input, int* output) {
  const int t = threadIdx.x;
  int value = input[t];
  if (!simt::mutant(1) || t < 16) value += __shfl_xor_sync(kAll, value, 1);  // BUG 1
  __syncthreads();
  output[t] = value;
}
void skip(simt::Device&, const void* input, void* output, int64_t) {
  simt::launch(skip_kernel, 1, 32, 0, nullptr, static_cast<const int*>(input), static_cast<int*>(output));
}
RULE_CASE(skip);

/// A mask without the calling lane.
__global__ void own_mask_kernel(const int* input, int* output) {
  const int t = threadIdx.x;
  output[t] = __shfl_sync(simt::mutant(1) ? 0x0000ffffu : kAll, input[t], 0);  // BUG 1
}
void own_mask(simt::Device&, const void* input, void* output, int64_t) {
  simt::launch(own_mask_kernel, 1, 32, 0, nullptr, static_cast<const int*>(input), static_cast<int*>(output));
}
RULE_CASE(own_mask);

/// A source lane that takes no part: outside the mask (1), or beyond the last thread of the block (2).
__global__ void inactive_kernel(const int* input, int* output) {
  const int t = threadIdx.x;
  int value = input[t];
  if (t < 16) value = __shfl_sync(0x0000ffffu, value, simt::mutant(1) ? 20 : t ^ 1);  // BUG 1
  if (simt::mutant(2)) value = __shfl_down_sync(kAll, value, 16);                     // BUG 2
  output[t] = value;
}
void inactive(simt::Device&, const void* input, void* output, int64_t n) {
  simt::launch(inactive_kernel, 1, unsigned(n), 0, nullptr, static_cast<const int*>(input), static_cast<int*>(output));
}
RULE_CASE(inactive);

/// Lanes that have returned, named in a mask.
__global__ void returned_kernel(const int* input, int* output, int n) {
  const int t = threadIdx.x;
  if (simt::mutant(1) && t >= n) return;
  const int value = __shfl_xor_sync(kAll, t < n ? input[t] : 0, 1);  // BUG 1
  if (t < n) output[t] = value;
}
void returned(simt::Device&, const void* input, void* output, int64_t n) {
  simt::launch(returned_kernel, 1, 32, 0, nullptr, static_cast<const int*>(input), static_cast<int*>(output), int(n));
}
RULE_CASE(returned);

/// Lanes of one warp at two shuffles, on two lines.
__global__ void two_shuffles_kernel(const int* input, int* output) {
  const int t = threadIdx.x;
  int value = input[t];
  if (simt::mutant(1) && t >= 16)
    value = __shfl_xor_sync(kAll, value, 1);  // BUG 1
  else
    value = __shfl_xor_sync(kAll, value, 1);  // BUG 1
  output[t] = value;
}
void two_shuffles(simt::Device&, const void* input, void* output, int64_t) {
  simt::launch(two_shuffles_kernel, 1, 32, 0, nullptr, static_cast<const int*>(input), static_cast<int*>(output));
}
RULE_CASE(two_shuffles);

/// Lanes of one warp at different operations with one mask.
__global__ void shuffle_and_vote_kernel(const int* input, int* output) {
  const int t = threadIdx.x;
  int value = input[t];
  if (simt::mutant(1) && t >= 16)
    value = int(__ballot_sync(kAll, value));  // BUG 1
  else
    value = __shfl_xor_sync(kAll, value, 1);  // BUG 1
  output[t] = value;
}
void shuffle_and_vote(simt::Device&, const void* input, void* output, int64_t) {
  simt::launch(shuffle_and_vote_kernel, 1, 32, 0, nullptr, static_cast<const int*>(input), static_cast<int*>(output));
}
RULE_CASE(shuffle_and_vote);

/// Every operation once: row r of the output [16, 64] is the r-th result of each lane of two warps.
__global__ void values_kernel(const int* input, int* output, int width) {
  const int t = threadIdx.x, lane = t % 32, x = input[t];
  int* row = output + t;
  const auto put = [&row](int value) {
    *row = value;
    row += 64;
  };
  put(__shfl_sync(kAll, x, lane * 3, width));
  put(__shfl_up_sync(kAll, x, 3, width));
  put(__shfl_down_sync(kAll, x, 3, width));
  put(__shfl_xor_sync(kAll, x, 9, width));
  put(int(__ballot_sync(kAll, x > 2)));
  put(__any_sync(kAll, x > 6));
  put(__all_sync(kAll, x > 0));
  put(int(__match_any_sync(kAll, x)));
  int all = -1;
  const uint32_t matched = __match_all_sync(kAll, x, &all);
  put(int(matched) + all);
  put(__reduce_add_sync(kAll, x));
  put(__reduce_min_sync(kAll, x - 4));
  put(__reduce_max_sync(kAll, uint32_t(x - 4)) == uint32_t(-1));
  put(int(__reduce_and_sync(kAll, uint32_t(x))));
  put(int(__reduce_or_sync(kAll, uint32_t(x))));
  put(int(__reduce_xor_sync(kAll, uint32_t(x))));
  put(int(__shfl_sync(kAll, double(x) + 0.25, 5) * 4));
}
void values(simt::Device&, const void* input, void* output, int64_t n) {
  simt::launch(values_kernel, 1, 64, 0, nullptr, static_cast<const int*>(input), static_cast<int*>(output), int(n));
}
RULE_CASE(values);

}  // namespace
}  // namespace rules::warp
