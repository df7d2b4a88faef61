#pragma once
// A small kernel family: how kernels, launchers and entries fit together.
#include <cuda_runtime.h>

#include <cstdint>

namespace simt::example {

/// sums[i] = the sum of row i of values [rows, columns]; one block of `threads` a row.
cudaError_t row_sums(const float* values, float* sums, int64_t rows, int64_t columns, int threads, cudaStream_t stream);

}  // namespace simt::example
