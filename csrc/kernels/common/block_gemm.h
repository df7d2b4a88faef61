#pragma once
// Register-blocked products on tiles that sit in cache: C (+)= op(A) B with B packed into column panels.
// Panel p of B holds columns [p*kPanel, ...) as [K][kPanel]; a last panel that is not full is one vector wide.
#include "common/vec.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {

#if defined(__AVX512F__)
inline constexpr int kRegisterRows = 8;  // 8 x 2 accumulators of the 32 registers; broadcasts fold into the FMA
#elif defined(__aarch64__)
inline constexpr int kRegisterRows = 8;
#else
inline constexpr int kRegisterRows = 6;  // 6 x 2 accumulators of 16 registers
#endif
inline constexpr int kRegisterVecs = 2;
template <class T>
inline constexpr int kPanel = kRegisterVecs * kLanes<T>;

/// C[Rows, Vecs*lanes] (+)= A B. A(i, k) is a[i*lda + k], or a[k*lda + i] when TransposeA.
template <class T, int Rows, int Vecs, bool TransposeA>
inline void register_block(int64_t depth, const T* a, int64_t lda, const T* b, T* c, int64_t ldc, bool accumulate) {
  Vec<T> acc[Rows][Vecs];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < Vecs; ++v) acc[i][v] = Vec<T>{};
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> row[Vecs];
#pragma GCC unroll 4
    for (int v = 0; v < Vecs; ++v) row[v] = load(b + (k * Vecs + v) * kLanes<T>);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const T x = TransposeA ? a[k * lda + i] : a[i * lda + k];
#pragma GCC unroll 4
      for (int v = 0; v < Vecs; ++v) acc[i][v] += x * row[v];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < Vecs; ++v) {  // adding at the end keeps long sums in two levels
      T* to = c + i * ldc + v * kLanes<T>;
      store(to, accumulate ? load(to) + acc[i][v] : acc[i][v]);
    }
}

template <class T, int Vecs, bool TransposeA>
inline void panel_product(int64_t rows, int64_t depth, const T* a, int64_t lda, const T* b, T* c, int64_t ldc,
                          bool accumulate) {
  const auto at = [&](int64_t i) { return TransposeA ? a + i : a + i * lda; };
  int64_t i = 0;
  for (; i + kRegisterRows <= rows; i += kRegisterRows)
    register_block<T, kRegisterRows, Vecs, TransposeA>(depth, at(i), lda, b, c + i * ldc, ldc, accumulate);
  for (; i + 4 <= rows; i += 4) register_block<T, 4, Vecs, TransposeA>(depth, at(i), lda, b, c + i * ldc, ldc, accumulate);
  for (; i < rows; ++i) register_block<T, 1, Vecs, TransposeA>(depth, at(i), lda, b, c + i * ldc, ldc, accumulate);
}

/// Panels as packed below: `depth` rows a panel, of which products use those from `first` on.
template <class T>
struct Panels {
  const T* data;
  int64_t depth;
  int64_t first = 0;
};

/// Longest sum kept in one register; longer ones are sums of such parts, which bounds the rounding error.
inline constexpr int kChain = 128;

/// C[rows, cols] (+)= op(A) B for `cols` a multiple of the vector width; uses `depth` rows of B.
template <class T, bool TransposeA = false>
inline void block_gemm(int64_t rows, int64_t cols, int64_t depth, const T* a, int64_t lda, Panels<T> b, T* c, int64_t ldc,
                       bool accumulate) {
  static_assert(kRegisterVecs == 2, "a last panel is one vector wide");
  for (int64_t k = 0; k < depth || k == 0; k += kChain) {
    const int64_t part = depth - k < kChain ? depth - k : kChain;
    const T* from = TransposeA ? a + k * lda : a + k;
    const bool add = accumulate || k > 0;
    int64_t n = 0;
    for (; n + kPanel<T> <= cols; n += kPanel<T>)
      panel_product<T, kRegisterVecs, TransposeA>(rows, part, from, lda, b.data + n * b.depth + (b.first + k) * kPanel<T>,
                                                  c + n, ldc, add);
    if (n < cols)
      panel_product<T, 1, TransposeA>(rows, part, from, lda, b.data + n * b.depth + (b.first + k) * kLanes<T>, c + n, ldc,
                                      add);
  }
}

/// Packs src[depth, cols] (row stride `stride`) into rows `first` on of panels; columns are zero-padded to `padded` (lane
/// multiple).
template <class T, class S>
inline void pack_panels(const S* src, int64_t stride, int64_t depth, int64_t cols, int64_t padded, int64_t panel_depth,
                        T* panels, int64_t first = 0) {
  for (int64_t n = 0; n < padded; n += kPanel<T>) {
    const int64_t width = padded - n < kPanel<T> ? kLanes<T> : kPanel<T>;
    const int64_t valid = cols - n < 0 ? 0 : cols - n < width ? cols - n : width;
    T* panel = panels + n * panel_depth;
    for (int64_t k = 0; k < depth; ++k) {
      const S* from = src + k * stride + n;
      T* to = panel + (first + k) * width;
      for (int64_t j = 0; j < valid; ++j) to[j] = load_as<T>(from + j);
      for (int64_t j = valid; j < width; ++j) to[j] = T(0);
    }
  }
}

/// Sets rows [first, last) of panels of `padded` columns to zero.
template <class T>
inline void clear_panels(int64_t padded, int64_t panel_depth, int64_t first, int64_t last, T* panels) {
  if (first >= last) return;
  for (int64_t n = 0; n < padded; n += kPanel<T>) {
    const int64_t width = padded - n < kPanel<T> ? kLanes<T> : kPanel<T>;
    std::memset(panels + n * panel_depth + first * width, 0, (last - first) * width * sizeof(T));
  }
}

/// Packs the transpose: column n of the panels is row n of src[cols, depth] (row stride `stride`).
template <class T, class S>
inline void pack_panels_transposed(const S* src, int64_t stride, int64_t cols, int64_t depth, int64_t padded, T* panels) {
  constexpr int kBlock = 8;  // one cache line of source per row and step
  for (int64_t n = 0; n < padded; n += kPanel<T>) {
    const int64_t width = padded - n < kPanel<T> ? kLanes<T> : kPanel<T>;
    T* panel = panels + n * depth;
    for (int64_t k0 = 0; k0 < depth; k0 += kBlock) {
      const int64_t k1 = k0 + kBlock < depth ? k0 + kBlock : depth;
      for (int64_t j = 0; j < width; ++j) {
        if (n + j < cols) {
          const S* from = src + (n + j) * stride;
          for (int64_t k = k0; k < k1; ++k) panel[k * width + j] = load_as<T>(from + k);
        } else {
          for (int64_t k = k0; k < k1; ++k) panel[k * width + j] = T(0);
        }
      }
    }
  }
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
