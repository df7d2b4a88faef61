#pragma once
#include "attention/bwd_mma.cuh"
#include "attention/launch.h"

namespace longspan::kernels {

template <class T, class Keys, class Queries, bool Aligned>
void launch_backward(const AttentionArguments& args, cudaStream_t stream) {
  const int64_t key_blocks = ceil_div(args.keys, Keys::BN) * Keys::Parts * args.key_heads * args.batch;
  if (key_blocks > 0)
    simt::check(simt::launch(attention_bwd_keys_kernel<T, Keys, Aligned>, dim3(unsigned(key_blocks)), dim3(Keys::Threads),
                             sizeof(KeyGradientShared<T, Keys>), stream, args),
                "attention_bwd (dK, dV)");
  const int64_t query_blocks = ceil_div(args.queries, Queries::BM) * args.heads * args.batch;
  if (query_blocks > 0)
    simt::check(simt::launch(attention_bwd_queries_kernel<T, Queries, Aligned>, dim3(unsigned(query_blocks)),
                             dim3(Queries::Threads), sizeof(QueryGradientShared<T, Queries>), stream, args),
                "attention_bwd (dQ)");
}

/// The tile sizes per head dimension; docs/cuda.md has the registers, shared memory and occupancy behind them.
template <class T>
void launch_backward_mma(const AttentionArguments& args, bool aligned, cudaStream_t stream) {
  if (args.pattern.kind == PatternKind::kSelected) {
    if (args.D <= 64)
      return launch_backward<T, KeyGradientShape<64, 32, 4, 1, true>, QueryGradientShape<64, 32, 4, true>, true>(args,
                                                                                                                 stream);
    if (args.D <= 128)
      return launch_backward<T, KeyGradientShape<128, 32, 4, 1, true>, QueryGradientShape<128, 32, 4, true>, true>(args,
                                                                                                                   stream);
    return launch_backward<T, KeyGradientShape<256, 16, 4, 2, true>, QueryGradientShape<256, 16, 4, true>, true>(args,
                                                                                                                 stream);
  }
  if (!aligned) {  // element by element: one shape per 128 columns is enough
    if (args.D <= 128)
      return launch_backward<T, KeyGradientShape<128, 16, 4, 1>, QueryGradientShape<128, 16, 4>, false>(args, stream);
    return launch_backward<T, KeyGradientShape<256, 16, 4, 4>, QueryGradientShape<256, 16, 4>, false>(args, stream);
  }
  if (args.D <= 32)
    return launch_backward<T, KeyGradientShape<32, 64, 4, 1>, QueryGradientShape<32, 32, 4>, true>(args, stream);
  if (args.D <= 64)
    return launch_backward<T, KeyGradientShape<64, 32, 4, 1>, QueryGradientShape<64, 32, 4>, true>(args, stream);
  if (args.D <= 80)
    return launch_backward<T, KeyGradientShape<80, 32, 4, 1>, QueryGradientShape<80, 32, 4>, true>(args, stream);
  if (args.D <= 96)
    return launch_backward<T, KeyGradientShape<96, 32, 4, 1>, QueryGradientShape<96, 32, 4>, true>(args, stream);
  if (args.D <= 128)
    return launch_backward<T, KeyGradientShape<128, 32, 4, 1>, QueryGradientShape<128, 32, 4>, true>(args, stream);
  launch_backward<T, KeyGradientShape<256, 16, 4, 2>, QueryGradientShape<256, 16, 4>, true>(args, stream);
}

}  // namespace longspan::kernels
