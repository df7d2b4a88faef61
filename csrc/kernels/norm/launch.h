#pragma once
// What the launches of both directions share.
#include <climits>
#include <stdexcept>
#include <string>

#include "common/simt.h"
#include "norm/norm.h"

namespace longspan::kernels {

inline constexpr int64_t kMaxNormBytes =
    227 * 1024;  // of shared memory, compute capability 8.0 and newer have 163 to 227 KiB

inline size_t norm_row_bytes(const View<2>& x) { return size_t(round_up(x.size[1] * element_size(x.dtype), 16)); }

/// Rows of one block of the backward: at most 1024 blocks, which fill every GPU several times.
inline constexpr int64_t norm_cuda_chunk_rows(int64_t rows) {
  const int64_t share = ceil_div(rows, 1024);
  return share > 4 ? share : 4;
}

/// Throws std::invalid_argument for what the CUDA kernels do not take.
inline void check_norm_rows(const View<2>& x) {
  if (x.dtype == DType::kFloat64)
    throw std::invalid_argument("norms on CUDA take float32, float16 and bfloat16, not float64");
  if (int64_t(norm_row_bytes(x)) > kMaxNormBytes)
    throw std::invalid_argument("norms on CUDA take rows of at most " + std::to_string(kMaxNormBytes) + " bytes, not " +
                                std::to_string(norm_row_bytes(x)));
  if (x.size[0] > INT_MAX) throw std::invalid_argument("norms on CUDA take at most 2^31 - 1 rows");
}

/// Calls body(S(), W()) with the types of rows and of weight and bias.
template <class F>
void dispatch_norm(DType rows, DType weight, F&& body) {
  if (rows == DType::kFloat32) return body(float(), float());
  const bool wide = weight == DType::kFloat32;
  if (rows == DType::kBFloat16) return wide ? body(__nv_bfloat16(), float()) : body(__nv_bfloat16(), __nv_bfloat16());
  wide ? body(__half(), float()) : body(__half(), __half());
}

}  // namespace longspan::kernels
