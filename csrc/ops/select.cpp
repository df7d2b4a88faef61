// torch op longspan::block_score: check, allocate, launch.
#include "kernels/select/select.h"

#include "ops/cuda.h"
#include "ops/tensor.h"

namespace longspan::ops {
namespace {

/// Where an op runs.
struct Cpu {
  static void run(const kernels::BlockScoreSpec& spec, const kernels::BlockScoreTensors& io, const Tensor& like) {
    TorchContext torch_context(like);
    kernels::block_score_cpu(spec, io, torch_context.context());
  }
};

#ifdef LONGSPAN_WITH_CUDA
struct Cuda {
  static void run(const kernels::BlockScoreSpec& spec, const kernels::BlockScoreTensors& io, const Tensor& like) {
    TorchCudaContext torch_context(like);
    kernels::block_score_cuda(spec, io, torch_context.context());
  }
};
#endif

const int32_t* block_numbers(const Tensor& x, const Tensor& q) {
  STD_TORCH_CHECK(x.dim() == 1 && x.is_contiguous() && x.scalar_type() == ScalarType::Int && x.device() == q.device(),
                  "longspan::block_score: starts, counts and segments must be contiguous int32 vectors beside q");
  return static_cast<const int32_t*>(x.const_data_ptr());
}

template <class Device>
Tensor block_score(const Tensor& q, const Tensor& k, const Tensor& starts, const Tensor& counts, const Tensor& segments,
                   int64_t most, double scale, bool causal) {
  const auto queries = view_of<3>(q), keys = view_of<3>(k);
  STD_TORCH_CHECK(q.scalar_type() == k.scalar_type() && q.device() == k.device() && keys.size[0] == queries.size[0] &&
                      keys.size[2] == queries.size[2] && keys.size[1] > 0 && queries.size[1] % keys.size[1] == 0 &&
                      queries.size[2] >= 1 && queries.size[2] <= 256,
                  "longspan::block_score: q must be [M,H,D] and k [M,K,D] alike, K a divisor of H, D 1 to 256");
  STD_TORCH_CHECK(starts.size(0) == counts.size(0) && segments.dim() == 1 && segments.size(0) >= 1 && most >= 0,
                  "longspan::block_score: starts and counts must be as long as each other, segments [S+1]");
  Tensor scores = torch::stable::new_empty(q, {segments.size(0) - 1, most, most}, statistics_type(q));
  Device::run(
      {scale, causal},
      {queries, keys, block_numbers(starts, q), block_numbers(counts, q), block_numbers(segments, q), view_of<3>(scores)},
      q);
  return scores;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(longspan, CPU, m) { m.impl("block_score", TORCH_BOX(&block_score<Cpu>)); }

#ifdef LONGSPAN_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(longspan, CUDA, m) { m.impl("block_score", TORCH_BOX(&block_score<Cuda>)); }
#endif

}  // namespace longspan::ops
