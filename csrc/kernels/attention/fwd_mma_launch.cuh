#pragma once
#include "attention/fwd_mma.cuh"
#include "attention/launch.h"

namespace longspan::kernels {

template <class T, class Shape, bool Aligned>
void launch_forward(const AttentionArguments& args, cudaStream_t stream) {
  const int64_t blocks = ceil_div(args.queries, Shape::BM) * args.heads * args.batch;
  simt::check(simt::launch(attention_fwd_kernel<T, Shape, Aligned>, dim3(unsigned(blocks)), dim3(Shape::Threads),
                           sizeof(ForwardShared<T, Shape>), stream, args),
              "attention_fwd");
}

/// Whether listed tiles are smaller than the query tiles of the usual shapes.
inline bool has_small_tiles(const AttentionArguments& args) {
  constexpr int kUsualRows = 128;
  return args.pattern.kind == PatternKind::kTiles && args.pattern.tile_size % kUsualRows != 0;
}

/// The tile sizes per head dimension; docs/cuda.md has the registers, shared memory and occupancy behind them.
template <class T>
void launch_forward_mma(const AttentionArguments& args, bool aligned, cudaStream_t stream) {
  if (args.pattern.kind == PatternKind::kSelected || (aligned && has_small_tiles(args))) {
    if (args.D <= 64) return launch_forward<T, ForwardShape<64, 1, 64, 4, true>, true>(args, stream);
    if (args.D <= 128) return launch_forward<T, ForwardShape<128, 1, 32, 4, true>, true>(args, stream);
    return launch_forward<T, ForwardShape<256, 1, 16, 4, true>, true>(args, stream);
  }
  if (!aligned) {  // element by element: one shape per 128 columns is enough
    if (args.D <= 128) return launch_forward<T, ForwardShape<128, 1, 32, 4>, false>(args, stream);
    return launch_forward<T, ForwardShape<256, 1, 16, 4>, false>(args, stream);
  }
  if (args.D <= 32) return launch_forward<T, ForwardShape<32, 2, 64, 4>, true>(args, stream);
  if (args.D <= 64) return launch_forward<T, ForwardShape<64, 2, 64, 4>, true>(args, stream);
  if (args.D <= 80) return launch_forward<T, ForwardShape<80, 2, 32, 4>, true>(args, stream);
  if (args.D <= 96) return launch_forward<T, ForwardShape<96, 2, 32, 4>, true>(args, stream);
  if (args.D <= 128) return launch_forward<T, ForwardShape<128, 2, 32, 4>, true>(args, stream);
  return launch_forward<T, ForwardShape<256, 1, 32, 4>, true>(args, stream);
}

}  // namespace longspan::kernels
