// torch ops longspan::magnitude_histogram, kth_magnitude and squared_norms: check, allocate, launch.
#include "kernels/magnitude/magnitude.h"

#include <cstdint>
#include <tuple>

#include "ops/cuda.h"
#include "ops/tensor.h"

namespace longspan::ops {
namespace {

using Tensors = std::vector<Tensor>;

/// Where an op runs.
struct Cpu {
  using Context = TorchContext;
  static constexpr auto histogram = &kernels::magnitude_histogram_cpu;
  static constexpr auto kth = &kernels::kth_magnitude_cpu;
  static constexpr auto squares = &kernels::squared_norms_cpu;
};

#ifdef LONGSPAN_WITH_CUDA
struct Cuda {
  using Context = TorchCudaContext;
  static constexpr auto histogram = &kernels::magnitude_histogram_cuda;
  static constexpr auto kth = &kernels::kth_magnitude_cuda;
  static constexpr auto squares = &kernels::squared_norms_cuda;
};
#endif

std::vector<kernels::MagnitudeTensor> tensors_of(const Tensors& tensors, const std::vector<int64_t>& groups) {
  STD_TORCH_CHECK(!tensors.empty() && tensors.size() == groups.size(),
                  "longspan: magnitudes need at least one tensor, and a group for each");
  std::vector<kernels::MagnitudeTensor> out;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Tensor& x = tensors[i];
    STD_TORCH_CHECK(groups[i] >= 0 && groups[i] <= INT32_MAX, "longspan: group ", groups[i],
                    " of magnitudes has no 31 bits");
    STD_TORCH_CHECK(x.is_contiguous() && x.device() == tensors[0].device(),
                    "longspan: magnitudes are ranked of contiguous tensors on one device");
    out.push_back({x.const_data_ptr(), dtype_of(x), x.numel(), int32_t(groups[i])});
  }
  return out;
}

template <class Device>
std::tuple<Tensor, Tensor> magnitude_histogram(const Tensors& tensors, const std::vector<int64_t>& groups, int64_t count,
                                               const std::optional<Tensor>& bins) {
  const auto listed = tensors_of(tensors, groups);
  STD_TORCH_CHECK(!bins || (bins->dim() == 1 && bins->size(0) == count && bins->scalar_type() == ScalarType::Int &&
                            bins->is_contiguous() && bins->device() == tensors[0].device()),
                  "longspan::magnitude_histogram: bins must be int32 [count] beside the tensors");
  const int64_t columns = bins ? kernels::kLowerBins : kernels::kUpperBins;
  Tensor counts = torch::stable::new_empty(tensors[0], {count, columns}, ScalarType::Long);
  Tensor squares = torch::stable::new_empty(tensors[0], {count}, ScalarType::Double);
  const kernels::HistogramOutput out{bins ? static_cast<const int32_t*>(bins->const_data_ptr()) : nullptr,
                                     static_cast<int64_t*>(counts.mutable_data_ptr()),
                                     static_cast<double*>(squares.mutable_data_ptr())};
  typename Device::Context torch_context(tensors[0]);
  Device::histogram(listed, count, out, torch_context.context());
  return {counts, squares};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> kth_magnitude(const Tensors& tensors, const std::vector<int64_t>& groups,
                                                         const Tensor& wanted, bool exact, bool norms) {
  const auto listed = tensors_of(tensors, groups);
  STD_TORCH_CHECK(wanted.dim() == 1 && wanted.scalar_type() == ScalarType::Long && wanted.is_contiguous() &&
                      wanted.device() == tensors[0].device(),
                  "longspan::kth_magnitude: wanted must be int64 [groups] beside the tensors");
  const int64_t count = wanted.size(0);
  Tensor bits = torch::stable::new_empty(wanted, {count}, ScalarType::Int);
  Tensor cut = torch::stable::new_empty(wanted, {count}), kept = torch::stable::new_empty(wanted, {count});
  Tensor squares = torch::stable::new_empty(wanted, {2, count}, ScalarType::Double);
  const kernels::KthOutput out{static_cast<const int64_t*>(wanted.const_data_ptr()),
                               exact,
                               norms,
                               static_cast<int32_t*>(bits.mutable_data_ptr()),
                               static_cast<int64_t*>(cut.mutable_data_ptr()),
                               static_cast<int64_t*>(kept.mutable_data_ptr()),
                               static_cast<double*>(squares.mutable_data_ptr())};
  typename Device::Context torch_context(tensors[0]);
  Device::kth(listed, count, out, torch_context.context());
  return {bits, cut, kept, squares};
}

template <class Device>
Tensor squared_norms(const Tensors& tensors, const std::vector<int64_t>& groups, int64_t count) {
  const auto listed = tensors_of(tensors, groups);
  Tensor squares = torch::stable::new_empty(tensors[0], {count}, ScalarType::Double);
  typename Device::Context torch_context(tensors[0]);
  Device::squares(listed, count, static_cast<double*>(squares.mutable_data_ptr()), torch_context.context());
  return squares;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(longspan, CPU, m) {
  m.impl("magnitude_histogram", TORCH_BOX(&magnitude_histogram<Cpu>));
  m.impl("kth_magnitude", TORCH_BOX(&kth_magnitude<Cpu>));
  m.impl("squared_norms", TORCH_BOX(&squared_norms<Cpu>));
}

#ifdef LONGSPAN_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(longspan, CUDA, m) {
  m.impl("magnitude_histogram", TORCH_BOX(&magnitude_histogram<Cuda>));
  m.impl("kth_magnitude", TORCH_BOX(&kth_magnitude<Cuda>));
  m.impl("squared_norms", TORCH_BOX(&squared_norms<Cuda>));
}
#endif

}  // namespace longspan::ops
