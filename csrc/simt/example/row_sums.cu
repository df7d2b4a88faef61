#include "common/simt.h"
#include "simt/example/example.h"

namespace simt::example {
namespace {

__global__ void row_sums_kernel(const float* values, float* sums, int64_t columns) {
  SIMT_SHARED(float[32], partial);
  const int64_t row = blockIdx.x;
  float sum = 0.0f;
  for (int64_t column = threadIdx.x; column < columns; column += blockDim.x) sum += values[row * columns + column];
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
  if (threadIdx.x % warpSize == 0) partial[threadIdx.x / warpSize] = sum;
  if (!simt::mutant(1)) __syncthreads();
  if (threadIdx.x > 0) return;
  float total = 0.0f;
  for (unsigned warp = 0; warp < blockDim.x / warpSize; ++warp) total += partial[warp];
  sums[row] = total;
}

}  // namespace

cudaError_t row_sums(const float* values, float* sums, int64_t rows, int64_t columns, int threads, cudaStream_t stream) {
  return simt::launch(row_sums_kernel, dim3(unsigned(rows)), dim3(unsigned(threads)), 0, stream, values, sums, columns);
}

}  // namespace simt::example
