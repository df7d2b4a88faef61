// The library's own matrix product; see gemm.h for the contract.
#include "common/block_gemm.h"
#include "common/gemm.h"
#include "common/pack.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {
namespace {

inline constexpr int64_t kTileRows = 12 * kRegisterRows;  // what one task multiplies: a packed A part that stays in L2
inline constexpr int64_t kTileColumns = 512;

/// Cuts `length` into equal blocks of at most `longest`, rounded up to `step`.
int64_t block_length(int64_t length, int64_t longest, int64_t step) {
  return round_up(ceil_div(length, ceil_div(length, longest)), step);
}

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/// Runs body(index) for [0, tasks); one index runs here, without waking the pool.
template <class F>
void each(const Parallel& parallel, int64_t tasks, F&& body) {
  if (tasks == 1) return body(0);
  const Context context{parallel, {}, {}, Isa::kBaseline};
  parallel_for(context, tasks, [&](int64_t index, int) { body(index); });
}

/// op(X) with its lines (rows of op(A), columns of op(B)) packed into panels of Width.
template <class T, int Width>
struct Packer {
  const void* data;
  int64_t stride;
  bool lines_are_rows;
  DType dtype;

  template <class S>
  void pack_as(int64_t line, int64_t count, int64_t k, int64_t depth, T* to) const {
    const S* x = static_cast<const S*>(data);
    if (lines_are_rows)
      pack_rows<T, Width>(x + line * stride + k, stride, count, depth, to);
    else
      pack_columns<T, Width>(x + k * stride + line, stride, count, depth, to);
  }

  void pack(int64_t line, int64_t count, int64_t k, int64_t depth, T* to) const {
    if constexpr (sizeof(T) == 4) {
      if (dtype == DType::kBFloat16) return pack_as<bfloat16>(line, count, k, depth, to);
    }
    pack_as<T>(line, count, k, depth, to);
  }
};

/// One [rows <= kRegisterRows, columns <= kPanel] block of C from one panel of each side.
template <class T>
inline void micro(int64_t rows, int64_t columns, int64_t depth, const T* a, const T* b, T* c, int64_t ldc, bool accumulate) {
  if (columns == kPanel<T>)
    return panel_product<T, kRegisterVecs, true>(rows, depth, a, kRegisterRows, b, c, ldc, accumulate);
  T edge[kRegisterRows * kPanel<T>];
  panel_product<T, kRegisterVecs, true>(rows, depth, a, kRegisterRows, b, edge, kPanel<T>, false);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j)
      c[i * ldc + j] = accumulate ? c[i * ldc + j] + edge[i * kPanel<T> + j] : edge[i * kPanel<T> + j];
}

template <class T, class S>
void scale_rows(const S* from, int64_t ld_from, double beta, int64_t m, int64_t n, T* to, int64_t ld_to) {
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) to[i * ld_to + j] = beta == 0 ? T(0) : load_as<T>(from + i * ld_from + j) * T(beta);
}

/// Products of type T into C stored as S.
template <class T, class S>
void multiply(const GemmArgs& g, const Parallel& parallel, void* scratch) {
  constexpr bool kDirect = sizeof(S) == sizeof(T);  // a bfloat16 C is summed in a block of T and rounded once
  const int64_t mb = block_length(g.m, kGemmRows, kRegisterRows), nb = block_length(g.n, kGemmColumns, kPanel<T>);
  const int64_t kb = g.k > 0 ? block_length(g.k, kGemmDepth, 8) : 0;
  T* packed_a = static_cast<T*>(scratch);
  T* packed_b = packed_a + round_up(mb * least(kb, g.k), 64 / int64_t(sizeof(T)));
  T* block_c = packed_b + round_up(nb * least(kb, g.k), 64 / int64_t(sizeof(T)));
  const Packer<T, kRegisterRows> pack_a{g.a, g.lda, !g.transpose_a, g.dtype_a};
  const Packer<T, kPanel<T>> pack_b{g.b, g.ldb, g.transpose_b, g.dtype_b};

  for (int64_t n0 = 0; n0 < g.n; n0 += nb)
    for (int64_t m0 = 0; m0 < g.m; m0 += mb) {
      const int64_t m = least(mb, g.m - m0), n = least(nb, g.n - n0);
      S* out = static_cast<S*>(g.c) + m0 * g.ldc + n0;
      T* c = kDirect ? reinterpret_cast<T*>(out) : block_c;
      const int64_t ldc = kDirect ? g.ldc : nb;
      const int64_t tile_n = block_length(n, kTileColumns, kPanel<T>);
      const int64_t tiles_m = ceil_div(m, kTileRows), tiles_n = ceil_div(n, tile_n);
      const bool scaled = !kDirect || g.k == 0 || (g.beta != 0 && g.beta != 1);
      if (scaled)
        each(parallel, tiles_m, [&](int64_t t) {
          const int64_t i = t * kTileRows;
          scale_rows<T, S>(out + i * g.ldc, g.ldc, g.beta, least(kTileRows, m - i), n, c + i * ldc, ldc);
        });
      for (int64_t k0 = 0; k0 < g.k; k0 += kb) {
        const int64_t depth = least(kb, g.k - k0);
        const int64_t packs_a = tiles_m, packs_b = ceil_div(n, tile_n);
        each(parallel, packs_a + packs_b, [&](int64_t t) {
          if (t < packs_a) {
            for (int64_t i = t * kTileRows; i < least(m, (t + 1) * kTileRows); i += kRegisterRows)
              pack_a.pack(m0 + i, least(kRegisterRows, m - i), k0, depth, packed_a + i * depth);
          } else {
            const int64_t first = (t - packs_a) * tile_n;
            for (int64_t j = first; j < least(n, first + tile_n); j += kPanel<T>)
              pack_b.pack(n0 + j, least(kPanel<T>, n - j), k0, depth, packed_b + j * depth);
          }
        });
        const bool accumulate = k0 > 0 || g.beta != 0 || !kDirect;
        each(parallel, tiles_m * tiles_n, [&](int64_t t) {
          const int64_t i0 = t % tiles_m * kTileRows, j0 = t / tiles_m * tile_n;
          for (int64_t j = j0; j < least(n, j0 + tile_n); j += kPanel<T>)
            for (int64_t i = i0; i < least(m, i0 + kTileRows); i += kRegisterRows)
              micro<T>(least(kRegisterRows, m - i), least(kPanel<T>, n - j), depth, packed_a + i * depth,
                       packed_b + j * depth, c + i * ldc + j, ldc, accumulate);
        });
      }
      if constexpr (!kDirect)
        each(parallel, tiles_m, [&](int64_t t) {
          for (int64_t i = t * kTileRows; i < least(m, (t + 1) * kTileRows); ++i)
            for (int64_t j = 0; j < n; ++j) store_as<T>(out + i * g.ldc + j, c[i * ldc + j]);
        });
    }
}

}  // namespace

void gemm(const GemmArgs& args, const Parallel& parallel, void* scratch) {
  if (args.dtype_a == DType::kFloat64) return multiply<double, double>(args, parallel, scratch);
  if (args.dtype_c == DType::kBFloat16) return multiply<float, bfloat16>(args, parallel, scratch);
  multiply<float, float>(args, parallel, scratch);
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
