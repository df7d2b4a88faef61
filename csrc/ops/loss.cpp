// torch op longspan::linear_cross_entropy: check, allocate, launch.
#include "kernels/loss/loss.h"

#include <tuple>

#include "kernels/common/gemm.h"
#include "ops/cuda.h"
#include "ops/tensor.h"

namespace longspan::ops {
namespace {

/// The data of a contiguous vector, or null for none.
const void* vector_data(const std::optional<Tensor>& x, int64_t length, ScalarType type, const char* name) {
  if (!x) return nullptr;
  STD_TORCH_CHECK(x->dim() == 1 && x->size(0) == length && x->is_contiguous() && x->scalar_type() == type,
                  "longspan::linear_cross_entropy: ", name, " must be contiguous and have length ", length,
                  " and the right dtype");
  return x->const_data_ptr();
}

/// Where an op runs.
struct Cpu {
  static void run(const kernels::LinearCrossEntropySpec& spec, const kernels::LinearCrossEntropyTensors& io,
                  const Tensor& like) {
    // The library's own product, not aten::mm: as fast on these shapes, takes float32 logits with bfloat16 weights, and
    // autocast cannot reach it.
    TorchContext torch_context(like);
    kernels::Context context = torch_context.context();
    kernels::OwnGemm own(context.parallel, context.workspace, context.isa);
    context.gemm = own.gemm();
    kernels::linear_cross_entropy_cpu(spec, io, context);
  }
};

#ifdef LONGSPAN_WITH_CUDA
struct Cuda {
  static void run(const kernels::LinearCrossEntropySpec& spec, const kernels::LinearCrossEntropyTensors& io,
                  const Tensor& like) {
    TorchCudaContext torch_context(like);
    kernels::linear_cross_entropy_cuda(spec, io, torch_context.context());
  }
};
#endif

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> linear_cross_entropy(const Tensor& hidden, const Tensor& weight,
                                                                std::optional<Tensor> bias, const Tensor& labels,
                                                                std::optional<Tensor> row_weights, int64_t segment,
                                                                int64_t ignore_index, double logit_scale,
                                                                double logit_softcap, bool per_row, bool need_dhidden,
                                                                bool need_dweight, bool need_dbias) {
  const auto h = view_of<2>(hidden), w = view_of<2>(weight);
  const int64_t T = h.size[0], C = h.size[1], V = w.size[0];
  STD_TORCH_CHECK(w.size[1] == C && h.dtype == w.dtype, "longspan::linear_cross_entropy: hidden and weight do not fit");
  STD_TORCH_CHECK(segment >= 1, "longspan::linear_cross_entropy: segment must be at least 1");
  STD_TORCH_CHECK(!need_dbias || bias, "longspan::linear_cross_entropy: need_dbias without a bias");
  STD_TORCH_CHECK(
      labels.dim() == 1 && labels.size(0) == T && labels.is_contiguous() && labels.scalar_type() == ScalarType::Long,
      "longspan::linear_cross_entropy: labels must be contiguous int64 with one label a row");
  const ScalarType statistics = statistics_type(hidden);
  const auto gradient = [](bool needed, const Tensor& like) {
    return needed ? torch::stable::new_empty(like, {like.size(0), like.size(1)}) : torch::stable::new_empty(like, {0});
  };
  Tensor loss =
      per_row ? torch::stable::new_empty(hidden, {T}, statistics) : torch::stable::new_empty(hidden, {}, statistics);
  Tensor dhidden = gradient(need_dhidden, hidden), dweight = gradient(need_dweight, weight);
  Tensor dbias = torch::stable::new_empty(hidden, {need_dbias ? V : 0});

  kernels::LinearCrossEntropyTensors io{h,
                                        w,
                                        vector_data(bias, V, hidden.scalar_type(), "bias"),
                                        static_cast<const int64_t*>(labels.const_data_ptr()),
                                        vector_data(row_weights, T, statistics, "row_weights"),
                                        per_row ? loss.mutable_data_ptr() : nullptr,
                                        per_row ? nullptr : loss.mutable_data_ptr(),
                                        {},
                                        {},
                                        need_dbias ? dbias.mutable_data_ptr() : nullptr};
  if (need_dhidden) io.dhidden = view_of<2>(dhidden);
  if (need_dweight) io.dweight = view_of<2>(dweight);

  Device::run({segment, ignore_index, logit_scale, logit_softcap}, io, hidden);
  return {loss, dhidden, dweight, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(longspan, CPU, m) { m.impl("linear_cross_entropy", TORCH_BOX(&linear_cross_entropy<Cpu>)); }

#ifdef LONGSPAN_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(longspan, CUDA, m) { m.impl("linear_cross_entropy", TORCH_BOX(&linear_cross_entropy<Cuda>)); }
#endif

}  // namespace longspan::ops
