#pragma once
// Plain data that every kernel family shares. No torch, no Python, no CUDA headers.
#include <cstddef>
#include <cstdint>

// Functions that kernels of both worlds call.
#if defined(__CUDACC__)
#define LONGSPAN_HD __host__ __device__
#else
#define LONGSPAN_HD
#endif

namespace longspan::kernels {

enum class DType : int8_t { kFloat32, kFloat64, kBFloat16, kFloat16 };

inline constexpr int64_t element_size(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

/// The type in which a dtype is accumulated and in which its row statistics are kept.
inline constexpr DType statistics_dtype(DType dtype) { return dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32; }

/// A strided array: `data` and, per dimension, its length and its stride in elements.
template <int N>
struct View {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t size[N] = {};
  int64_t stride[N] = {};
};

LONGSPAN_HD inline constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
LONGSPAN_HD inline constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace longspan::kernels
