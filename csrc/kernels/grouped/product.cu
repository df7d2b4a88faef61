// Grouped products on tensor cores: one launch for all sets; see jobs.cuh. Layouts, fragments and copies are CuTe's.
#include "common/convert.cuh"
#include "common/cute_tile.cuh"
#include "grouped/jobs.cuh"

namespace longspan::kernels {
namespace {

/// Walks the steps of depth of all parts in order.
class Steps {
 public:
  SIMT_DEVICE Steps(const GroupedArguments& a, const GroupedPlace& at, int bytes) : a_(a), at_(at), bytes_(bytes) {
    live_ = grouped_part(a_, at_, cursor_, bytes_, part_);
  }
  SIMT_DEVICE bool live() const { return live_; }
  SIMT_DEVICE const GroupedPart& part() const { return part_; }
  SIMT_DEVICE int64_t k() const { return k_; }
  SIMT_DEVICE void advance(int depth) {
    k_ += depth;
    if (k_ < part_.k) return;
    k_ = 0;
    live_ = grouped_part(a_, at_, cursor_, bytes_, part_);
  }

 private:
  const GroupedArguments& a_;
  const GroupedPlace& at_;
  int bytes_, cursor_ = 0;
  GroupedPart part_{};
  int64_t k_ = 0;
  bool live_ = false;
};

template <class S>
SIMT_DEVICE void store_pair(const GroupedArguments& a, const GroupedPlace& at, int64_t i, int64_t j, float (&value)[2]) {
  if (i >= at.m) return;
  const int64_t place = grouped_out(a, at, i, j);
  const auto* bias = static_cast<const S*>(a.bias);
  SIMT_UNROLL
  for (int e = 0; e < 2; ++e)
    if (bias && j + e < at.n) value[e] += to_float(bias[grouped_bias(a, at, j + e)]);
  if (a.wide) {
    SIMT_UNROLL
    for (int e = 0; e < 2; ++e)
      if (j + e < at.n) static_cast<float*>(a.out)[place + e] = value[e];
    return;
  }
  S* out = static_cast<S*>(a.out) + place;
  if ((a.pairs || simt::mutant(232)) && j + 1 < at.n) {
    *reinterpret_cast<uint32_t*>(out) = simt::pack2(value[0], value[1], S());
    return;
  }
  SIMT_UNROLL
  for (int e = 0; e < 2; ++e)
    if (j + e < at.n) out[e] = simt::rounded(value[e], S());
}

template <class S, class Tiles, bool RowsA, bool RowsB>
__global__ void __launch_bounds__(kProductThreads, 2) grouped_product_kernel(const GroupedArguments a) {
  using T = typename CuteElement<S>::Type;
  using LayoutA = TileLayout<Tiles::kM, Tiles::kK, Tiles::kStages, RowsA>;
  using LayoutB = TileLayout<Tiles::kN, Tiles::kK, Tiles::kStages, RowsB>;
  T* shared_a = simt::dyn_smem<T>();
  T* shared_b = shared_a + LayoutA::kElements;
  GroupedPlace at;
  if (!grouped_place(a, blockIdx.x, Tiles::kM, Tiles::kN, at)) return;

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
  const auto places = mine.partition_C(cute::make_identity_tensor(Shape<Int<Tiles::kM>, Int<Tiles::kN>>{}));
  auto c = cute::partition_fragment_C(mma, Shape<Int<Tiles::kM>, Int<Tiles::kN>>{});
  cute::clear(c);
  constexpr int kMs = decltype(cute::size<1>(c))::value, kNs = decltype(cute::size<2>(c))::value;

  Steps fetch(a, at, sizeof(T));
  int ahead = 0;  // steps that are on their way or landed, and not multiplied yet
  const auto load = [&](int stage) {
    const GroupedPart& part = fetch.part();
    LayoutA::load(shared_a, static_cast<const T*>(part.a), part.lda, at.m0, fetch.k(), at.m, part.k, part.aligned, stage);
    LayoutB::load(shared_b, static_cast<const T*>(part.b), part.ldb, at.n0, fetch.k(), at.n, part.k, part.aligned, stage);
    fetch.advance(Tiles::kK);
    ++ahead;
  };
  SIMT_UNROLL
  for (int stage = 0; stage < Tiles::kStages - 1; ++stage) {
    if (fetch.live()) load(stage);
    ptx::cp_async_commit();
  }
  for (int stage = 0, free = Tiles::kStages - 1; ahead > 0; --ahead) {
    ptx::cp_async_wait<Tiles::kStages - 2>();
    if (!simt::mutant(233)) __syncthreads();  // this step has landed, and nobody reads the step before it any more
    if (fetch.live()) load(free);
    ptx::cp_async_commit();
    SIMT_UNROLL
    for (int k = 0; k < Tiles::kK / 16; ++k) {
      cute::copy(copy_a, from_a(_, _, k, stage), to_a(_, _, k));
      cute::copy(copy_b, from_b(_, _, k, stage), to_b(_, _, k));
      cute::gemm(mma, fa(_, _, k), fb(_, _, k), c);
    }
    free = stage, stage = stage + 1 == Tiles::kStages ? 0 : stage + 1;
  }
  SIMT_UNROLL
  for (int m = 0; m < kMs; ++m) SIMT_UNROLL
  for (int n = 0; n < kNs; ++n) SIMT_UNROLL
  for (int half = 0; half < 2; ++half) {
    const auto place = places(cute::make_coord(0, half), m, n);
    float value[2] = {c(2 * half, m, n), c(2 * half + 1, m, n)};
    store_pair<S>(a, at, at.m0 + cute::get<0>(place), at.n0 + cute::get<1>(place), value);
  }
}

using Tiles = ProductShape<128, 128, 32, 3>;

template <class S, bool RowsA, bool RowsB>
void run(const GroupedArguments& args, cudaStream_t stream) {
  const int64_t blocks = grouped_blocks(args, Tiles::kM, Tiles::kN);
  if (blocks == 0) return;
  constexpr size_t kBytes = size_t(Tiles::kM + Tiles::kN) * Tiles::kK * Tiles::kStages * sizeof(S);
  simt::check(simt::launch(grouped_product_kernel<S, Tiles, RowsA, RowsB>, dim3(unsigned(blocks)), dim3(kProductThreads),
                           kBytes, stream, args),
              "grouped product");
}

template <class S>
void run(const GroupedArguments& args, cudaStream_t stream) {
  if (args.kind == GroupedKind::kWeight) return run<S, false, false>(args, stream);
  // op(B) lies by rows of n where W's blocks are rows of an expansion, or columns of a reduction.
  if (args.by_rows == (args.kind == GroupedKind::kExpand)) return run<S, true, true>(args, stream);
  run<S, true, false>(args, stream);
}

}  // namespace

void grouped_product_16(DType dtype, const GroupedArguments& args, cudaStream_t stream) {
  if (dtype == DType::kBFloat16) return run<__nv_bfloat16>(args, stream);
  run<__half>(args, stream);
}

}  // namespace longspan::kernels
