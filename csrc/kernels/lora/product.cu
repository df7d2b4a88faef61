// The family's matrix product on tensor cores: several pairs of factors into one accumulator, so that a low-rank tail, or
// the projections of a group, cost their arithmetic alone. Layouts, fragments and copies are CuTe's.
#include <type_traits>

#include "common/convert.cuh"
#include "common/cute_tile.cuh"
#include "lora/launch.h"

namespace longspan::kernels {
namespace {

/// Walks the steps of all parts in order.
struct Cursor {
  int part = 0;
  int64_t k = 0;

  SIMT_DEVICE void advance(const ProductArguments& a, int depth) {
    k += depth;
    if (k >= a.parts[part].k) ++part, k = 0;
  }
};

/// Whether the row's elements of columns [column, column + 2) may be moved at once.
SIMT_DEVICE bool whole_pair(const ProductArguments& a, int64_t column) {
  return (a.pairs || simt::mutant(143)) && column + 1 < a.n;
}
template <class S>
SIMT_DEVICE void add_pair(float (&value)[2], const S* row, int64_t column, const ProductArguments& a) {
  if (whole_pair(a, column)) {
    const Pair<S> pair = *reinterpret_cast<const Pair<S>*>(row + column);
    value[0] += to_float(pair.at[0]), value[1] += to_float(pair.at[1]);
    return;
  }
  SIMT_UNROLL
  for (int e = 0; e < 2; ++e)
    if (column + e < a.n) value[e] += to_float(row[column + e]);
}

/// Bias, residual and sums onto two neighbours of C, and their store.
template <class S>
SIMT_DEVICE void store_pair(const ProductArguments& a, int64_t row, int64_t column, float (&value)[2]) {
  if (row >= a.m) return;
  if (a.sums) {
    float* sums = a.sums + row * a.n + column;
    SIMT_UNROLL
    for (int e = 0; e < 2; ++e) {
      if (column + e >= a.n) continue;
      if (!a.first) value[e] += sums[e];
      if (!a.last) sums[e] = value[e];
    }
    if (!a.last) return;
  }
  const auto* bias = static_cast<const S*>(a.bias);
  SIMT_UNROLL
  for (int e = 0; e < 2; ++e)
    if (bias && column + e < a.n) value[e] += to_float(bias[column + e]);
  if (a.residual) add_pair(value, static_cast<const S*>(a.residual) + row * a.ldr, column, a);
  S* out = static_cast<S*>(a.out) + row * a.ldo + column;
  if (whole_pair(a, column)) {
    *reinterpret_cast<uint32_t*>(out) = simt::pack2(value[0], value[1], S());
    return;
  }
  SIMT_UNROLL
  for (int e = 0; e < 2; ++e)
    if (column + e < a.n) out[e] = simt::rounded(value[e], S());
}

SIMT_DEVICE uint64_t seed_of(const ProductArguments& a, int part) {
  return uint64_t(a.dropout.seeds[a.parts[part].projection]);
}

/// Which of this thread's elements of C the mask keeps, in the order of its fragments.
template <int Ms, int Ns, class Places>
SIMT_DEVICE void kept_places(uint32_t (&bits)[Ms * Ns / 8], const Places& places, const Dropout& dropout, int64_t m0,
                             int64_t n0, uint64_t seed) {
  SIMT_UNROLL
  for (int word = 0; word < Ms * Ns / 8; ++word) {
    bits[word] = 0;
#pragma unroll 1
    for (int i = 0; i < 16; ++i) {  // pairs of neighbours
      const int pair = word * 16 + i;
      const auto place = places(cute::make_coord(0, pair & 1), pair / 2 % Ms, pair / 2 / Ms);
      bits[word] |= (kept(dropout, m0 + cute::get<0>(place), n0 + cute::get<1>(place), 2, seed) & 3) << (2 * i);
    }
  }
}

/// `Masked`: some parts are masked. Their products need registers beside the accumulator, so its tile is smaller.
template <class S, class Tiles, bool Masked, ProductLayout Stored>
__global__ void __launch_bounds__(kProductThreads, 2) lora_product_kernel(const ProductArguments a) {
  using T = typename CuteElement<S>::Type;
  constexpr bool RowsA = Stored != ProductLayout::kColumnsColumns, RowsB = Stored == ProductLayout::kRowsRows;
  using LayoutA = TileLayout<Tiles::kM, Tiles::kK, Tiles::kStages, RowsA>;
  using LayoutB = TileLayout<Tiles::kN, Tiles::kK, Tiles::kStages, RowsB>;
  T* shared_a = simt::dyn_smem<T>();
  T* shared_b = shared_a + LayoutA::kElements;
  const int64_t tiles = ceil_div(a.n, Tiles::kN);
  const int64_t m0 = blockIdx.x / tiles * Tiles::kM, n0 = blockIdx.x % tiles * Tiles::kN;

  const auto sa = cute::make_tensor(cute::make_smem_ptr(shared_a), typename LayoutA::Type{});
  const auto sb = cute::make_tensor(cute::make_smem_ptr(shared_b), typename LayoutB::Type{});
  const auto mma =
      cute::make_tiled_mma(typename CuteElement<S>::Mma{}, Layout<Shape<_2, _2, _1>>{}, cute::Tile<_32, _32, _16>{});
  const auto mine = mma.get_slice(int(threadIdx.x));
  auto fa = mine.partition_fragment_A(sa(_, _, _0{}));
  auto fb = mine.partition_fragment_B(sb(_, _, _0{}));
  using CopyA = cute::Copy_Atom<std::conditional_t<RowsA, LoadMatrix, LoadMatrixTransposed>, T>;
  using CopyB = cute::Copy_Atom<std::conditional_t<RowsB, LoadMatrix, LoadMatrixTransposed>, T>;
  const auto copy_a = cute::make_tiled_copy_A(CopyA{}, mma);
  const auto copy_b = cute::make_tiled_copy_B(CopyB{}, mma);
  const auto from_a = copy_a.get_slice(int(threadIdx.x)).partition_S(sa);
  const auto from_b = copy_b.get_slice(int(threadIdx.x)).partition_S(sb);
  auto to_a = copy_a.get_slice(int(threadIdx.x)).retile_D(fa);
  auto to_b = copy_b.get_slice(int(threadIdx.x)).retile_D(fb);
  // Where each element of the accumulator ((2 columns, 2 rows), m, n) stands in the tile.
  const auto places = mine.partition_C(cute::make_identity_tensor(Shape<Int<Tiles::kM>, Int<Tiles::kN>>{}));
  auto c = cute::partition_fragment_C(mma, Shape<Int<Tiles::kM>, Int<Tiles::kN>>{});
  cute::clear(c);
  constexpr int kMs = decltype(cute::size<1>(c))::value, kNs = decltype(cute::size<2>(c))::value;
  constexpr int kSteps = Tiles::kK / 16;

  const auto load = [&](const Cursor& at, int stage) {
    const ProductPart& part = a.parts[at.part];
    LayoutA::load(shared_a, static_cast<const T*>(part.a), part.lda, m0, at.k, a.m, part.k, part.aligned, stage);
    LayoutB::load(shared_b, static_cast<const T*>(part.b), part.ldb, n0, at.k, a.n, part.k, part.aligned, stage);
  };
  Cursor fetch;
  SIMT_UNROLL
  for (int stage = 0; stage < Tiles::kStages - 1; ++stage) {
    if (fetch.part < a.count) load(fetch, stage), fetch.advance(a, Tiles::kK);
    ptx::cp_async_commit();
  }
  int stage = 0, free = Tiles::kStages - 1;
  for (Cursor at; at.part < a.count; at.advance(a, Tiles::kK)) {
    ptx::cp_async_wait<Tiles::kStages - 2>();
    __syncthreads();  // this step has landed, and nobody reads the step before it any more
    if (fetch.part < a.count) load(fetch, free), fetch.advance(a, Tiles::kK);
    ptx::cp_async_commit();
    const auto fragments = [&](int k) {
      cute::copy(copy_a, from_a(_, _, k, stage), to_a(_, _, k));
      cute::copy(copy_b, from_b(_, _, k, stage), to_b(_, _, k));
    };
    if (!Masked || !a.parts[at.part].masked) {
      SIMT_UNROLL
      for (int k = 0; k < kSteps; ++k) fragments(k), cute::gemm(mma, fa(_, _, k), fb(_, _, k), c);
    } else {
      uint32_t bits[kMs * kNs / 8];
      kept_places<kMs, kNs>(bits, places, a.dropout, m0, n0, seed_of(a, at.part));
      SIMT_UNROLL
      for (int k = 0; k < kSteps; ++k) {
        fragments(k);
        SIMT_UNROLL
        for (int n = 0; n < kNs; ++n) SIMT_UNROLL
        for (int m = 0; m < kMs; ++m) {
          auto part = cute::make_fragment_like(c(_, m, n));
          cute::clear(part);
          cute::gemm(mma, fa(_, m, k), fb(_, n, k), part);
          SIMT_UNROLL
          for (int e = 0; e < 4; ++e)
            c(e, m, n) += (bits[(n * kMs + m) / 8] >> ((n * kMs + m) % 8 * 4 + e) & 1) || simt::mutant(144) ? part(e) : 0.f;
        }
      }
    }
    free = stage, stage = stage + 1 == Tiles::kStages ? 0 : stage + 1;
  }
  SIMT_UNROLL
  for (int m = 0; m < kMs; ++m) SIMT_UNROLL
  for (int n = 0; n < kNs; ++n) SIMT_UNROLL
  for (int half = 0; half < 2; ++half) {
    const auto place = places(cute::make_coord(0, half), m, n);
    float value[2] = {c(2 * half, m, n), c(2 * half + 1, m, n)};
    store_pair<S>(a, m0 + cute::get<0>(place), n0 + cute::get<1>(place), value);
  }
}

using Tiles = ProductShape<128, 128, 32, 3>;
using MaskedTiles = ProductShape<64, 128, 32, 3>;

template <class S, class Tiles, bool Masked, ProductLayout Stored>
void run(const ProductArguments& args, cudaStream_t stream) {
  const int64_t blocks = ceil_div(args.m, Tiles::kM) * ceil_div(args.n, Tiles::kN);
  if (blocks == 0) return;
  constexpr size_t kBytes = size_t(Tiles::kM + Tiles::kN) * Tiles::kK * Tiles::kStages * sizeof(S);
  simt::check(simt::launch(lora_product_kernel<S, Tiles, Masked, Stored>, dim3(unsigned(blocks)), dim3(kProductThreads),
                           kBytes, stream, args),
              "lora (product)");
}

template <class S>
void run(ProductLayout layout, const ProductArguments& args, cudaStream_t stream) {
  using enum ProductLayout;
  if (layout == kRowsRows) return run<S, Tiles, false, kRowsRows>(args, stream);
  if (layout == kColumnsColumns) return run<S, Tiles, false, kColumnsColumns>(args, stream);
  if (args.dropout.seeds) return run<S, MaskedTiles, true, kRowsColumns>(args, stream);
  run<S, Tiles, false, kRowsColumns>(args, stream);
}

}  // namespace

void product_16(DType dtype, ProductLayout layout, const ProductArguments& args, cudaStream_t stream) {
  if (dtype == DType::kBFloat16) return run<__nv_bfloat16>(layout, args, stream);
  run<__half>(layout, args, stream);
}

}  // namespace longspan::kernels
