#pragma once
// Panels for the register blocks: `count` lines of a matrix side by side, [depth][width]. Only for per-ISA sources.
#include "common/vec.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {

namespace detail {
typedef float Float4 __attribute__((vector_size(16)));

/// to[k * width + j] = from[j * stride + k] for k < 4, j < 4.
inline void transpose4(const float* from, int64_t stride, float* to, int64_t width) {
  Float4 r[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) std::memcpy(&r[j], from + j * stride, sizeof r[j]);
  const Float4 a = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5), b = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5);
  const Float4 c = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7), d = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
  const Float4 out[4] = {__builtin_shufflevector(a, b, 0, 1, 4, 5), __builtin_shufflevector(a, b, 2, 3, 6, 7),
                         __builtin_shufflevector(c, d, 0, 1, 4, 5), __builtin_shufflevector(c, d, 2, 3, 6, 7)};
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) std::memcpy(to + k * width, &out[k], sizeof out[k]);
}
}  // namespace detail

/// Panel [depth][Width] of lines that lie along the rows of `from`: to[k][j] = from[j * stride + k], 0 for j >= count.
template <class T, int Width, class S>
inline void pack_rows(const S* from, int64_t stride, int64_t count, int64_t depth, T* to) {
  int64_t j = 0;
  if constexpr (sizeof(S) == 4 && sizeof(T) == 4)
    for (; j + 4 <= count; j += 4) {
      int64_t k = 0;
      for (; k + 4 <= depth; k += 4) detail::transpose4(from + j * stride + k, stride, to + k * Width + j, Width);
      for (; k < depth; ++k)
        for (int64_t i = j; i < j + 4; ++i) to[k * Width + i] = from[i * stride + k];
    }
  constexpr int64_t kBlock = 16;  // steps of k whose part of the panel stays in L1 while the lines pass over it
  for (int64_t k0 = 0; k0 < depth; k0 += kBlock) {
    const int64_t k1 = k0 + kBlock < depth ? k0 + kBlock : depth;
    for (int64_t i = j; i < count; ++i)
      for (int64_t k = k0; k < k1; ++k) to[k * Width + i] = load_as<T>(from + i * stride + k);
    for (int64_t k = k0; k < k1; ++k)
      for (int64_t i = count; i < Width; ++i) to[k * Width + i] = T(0);
  }
}

/// Panel [depth][Width] of lines that lie along the columns of `from`: to[k][j] = from[k * stride + j], 0 for j >= count.
template <class T, int Width, class S>
inline void pack_columns(const S* from, int64_t stride, int64_t count, int64_t depth, T* to) {
  if (count == Width) {
    for (int64_t k = 0; k < depth; ++k)
      for (int j = 0; j < Width; ++j) to[k * Width + j] = load_as<T>(from + k * stride + j);
    return;
  }
  for (int64_t k = 0; k < depth; ++k)
    for (int64_t j = 0; j < Width; ++j) to[k * Width + j] = j < count ? load_as<T>(from + k * stride + j) : T(0);
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
