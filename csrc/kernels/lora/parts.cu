// The small kernels around the products: adapters into padded scratch, and sums of parts in a fixed order.
#include <type_traits>

#include "common/convert.cuh"
#include "lora/launch.h"

namespace longspan::kernels {
namespace {

constexpr int kThreads = 256;

SIMT_DEVICE int64_t first_index() { return int64_t(blockIdx.x) * kThreads + threadIdx.x; }
SIMT_DEVICE int64_t index_step() { return int64_t(gridDim.x) * kThreads; }

template <class S, class From>
__global__ void __launch_bounds__(kThreads) lora_pack_kernel(const PackArguments a) {
  const auto* from = static_cast<const From*>(a.from);
  auto* to = static_cast<S*>(a.to);
  for (int64_t i = first_index(); i < a.rows * a.ldt; i += index_step()) {
    const int64_t row = i / a.ldt, column = i % a.ldt;
    const int64_t r = a.transposed ? column : row, c = a.transposed ? row : column;
    const bool inside = (r < a.from_rows && c < a.from_columns) || simt::mutant(132);
    store(to + i, inside ? to_float(from[r * a.ldf + c]) : 0.f);
  }
}

/// One thread a row and padded rank; neighbours read neighbours.
template <class S>
__global__ void __launch_bounds__(kThreads) lora_row_sums_kernel(const RowSumArguments a) {
  for (int64_t i = first_index(); i < a.rows * a.width; i += index_step()) {
    const int64_t row = i / a.width;
    const int rank = int(i % a.width);
    float sum = 0;
    for (int64_t panel = simt::mutant(133) ? a.panels - 1 : 0; panel < a.panels; ++panel)
      sum += a.parts[panel * a.rows * a.width + i];
    for (int g = 0; g < a.count; ++g) {
      const RankGroup& group = a.groups[g];
      const int r = rank - group.padded;
      if (r < 0 || r >= round_up(group.ranks, kRankStep)) continue;
      const float value = r < group.ranks ? sum * a.factors[g] : 0.f;
      if (a.sums && r < group.ranks) a.sums[row * a.lds + group.column + r] = value;
      store(static_cast<S*>(a.tail) + i, simt::mutant(134) ? value : value * a.tail_factors[g]);
    }
  }
}

template <class Out>
__global__ void __launch_bounds__(kThreads) lora_column_sums_kernel(const ColumnSumArguments a) {
  for (int64_t i = first_index(); i < a.ranks * a.K; i += index_step()) {
    const int64_t r = i / a.K, k = i % a.K;
    float sum = 0;
    for (int64_t chunk = 0; chunk < a.chunks; ++chunk) sum += a.parts[(chunk * a.width + a.first + r) * a.K + k];
    store(static_cast<Out*>(a.to) + r * a.rank_stride + k * a.k_stride, simt::mutant(135) ? sum : sum * a.factor);
  }
}

template <class S>
__global__ void __launch_bounds__(kThreads)
    lora_bias_parts_kernel(const S* x, int64_t stride, int64_t rows, int64_t columns, int64_t chunk_rows, float* parts) {
  const int64_t c = first_index();
  if (c >= columns) return;
  const int64_t begin = blockIdx.y * chunk_rows;
  const int64_t end = begin + chunk_rows < rows ? begin + chunk_rows : rows;
  float sum = 0;
  for (int64_t t = begin; t < end; ++t) sum += to_float(x[t * stride + c]);
  parts[blockIdx.y * columns + c] = sum;
}

dim3 grid_of(int64_t elements) {
  constexpr int64_t kMostBlocks = 1 << 16;  // enough for every GPU; threads stride over the rest
  const int64_t blocks = ceil_div(elements, kThreads);
  return dim3(unsigned(blocks < kMostBlocks ? blocks : kMostBlocks));
}

}  // namespace

void pack(DType dtype, const PackArguments& args, cudaStream_t stream) {
  if (args.rows * args.ldt == 0) return;
  dispatch_lora(dtype, [&](auto s) {
    using S = decltype(s);
    dispatch_lora(args.from_dtype, [&](auto f) {
      using From = decltype(f);
      if constexpr (std::is_same_v<S, From> || std::is_same_v<S, float> || std::is_same_v<From, float>)
        simt::check(simt::launch(lora_pack_kernel<S, From>, grid_of(args.rows * args.ldt), dim3(kThreads), 0, stream, args),
                    "lora (adapters)");
    });
  });
}

void sum_row_parts(DType dtype, const RowSumArguments& args, cudaStream_t stream) {
  if (args.rows * args.width == 0) return;
  dispatch_lora(dtype, [&](auto s) {
    const auto kernel = lora_row_sums_kernel<decltype(s)>;
    simt::check(simt::launch(kernel, grid_of(args.rows * args.width), dim3(kThreads), 0, stream, args), "lora (row sums)");
  });
}

void sum_column_parts(DType dtype, const ColumnSumArguments& args, cudaStream_t stream) {
  if (args.ranks * args.K == 0) return;
  dispatch_lora(dtype, [&](auto s) {
    const auto kernel = lora_column_sums_kernel<decltype(s)>;
    simt::check(simt::launch(kernel, grid_of(args.ranks * args.K), dim3(kThreads), 0, stream, args), "lora (column sums)");
  });
}

void column_parts(DType dtype, const View<2>& x, int64_t chunk_rows, float* parts, cudaStream_t stream) {
  const int64_t chunks = ceil_div(x.size[0], chunk_rows);
  if (chunks * x.size[1] == 0) return;
  const dim3 grid(unsigned(ceil_div(x.size[1], kThreads)), unsigned(chunks));
  dispatch_lora(dtype, [&](auto s) {
    using S = decltype(s);
    simt::check(simt::launch(lora_bias_parts_kernel<S>, grid, dim3(kThreads), 0, stream, static_cast<const S*>(x.data),
                             x.stride[0], x.size[0], x.size[1], chunk_rows, parts),
                "lora (bias)");
  });
}

}  // namespace longspan::kernels
