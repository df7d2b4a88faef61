// Calls of the ops over lists of tensors; see list_launches.h.
#include "list_launches.h"

#include "magnitude/magnitude.h"
#include "perturb/perturb.h"
#include "sparse_launches.h"
#include "update/update.h"

namespace longspan::kernels {
namespace {

constexpr int64_t kSize = 4096 * 4096, kTensors = 8;

template <class T>
T* array() {
  return reinterpret_cast<T*>(scratch);
}

void magnitude(const std::string& what, DType dtype) {
  std::vector<MagnitudeTensor> tensors;
  for (int64_t i = 0; i < kTensors; ++i) tensors.push_back({scratch, dtype, kSize, int32_t(i)});
  if (what == "kth")
    kth_magnitude_cuda(tensors, kTensors,
                       {array<int64_t>(), true, true, array<int32_t>(), array<int64_t>(), array<int64_t>(), array<double>()},
                       context());
  else if (what == "histogram" || what == "lower")
    magnitude_histogram_cuda(tensors, kTensors,
                             {what == "lower" ? array<int32_t>() : nullptr, array<int64_t>(), array<double>()}, context());
  else if (what == "squares")
    squared_norms_cuda(tensors, kTensors, array<double>(), context());
  else
    throw std::invalid_argument("magnitude has no " + what);
}

void perturb(const std::string& what, DType dtype) {
  if (what != "gaussian" && what != "rademacher") throw std::invalid_argument("perturb has no " + what);
  const std::vector<PerturbTensor> tensors(kTensors, {scratch, scratch, nullptr, dtype, dtype, dtype, kSize, 0, 0});
  const Distribution distribution = what == "gaussian" ? Distribution::kGaussian : Distribution::kRademacher;
  perturb_cuda({distribution, 0, array<int64_t>(), array<int64_t>(), 1}, array<float>(), tensors, context());
}

void update(const std::string& what, DType dtype) {
  const UpdateTensor tensor{scratch,
                            dtype,
                            scratch,
                            dtype,
                            array<float>(),
                            array<float>(),
                            nullptr,
                            DType::kBFloat16,
                            kSize,
                            4096,
                            MaskKind::kThreshold,
                            nullptr,
                            0,
                            0};
  const std::vector<UpdateTensor> tensors(kTensors, tensor);
  const UpdateSpec spec{
      MaskMode::kGradient, array<int32_t>(), array<int64_t>(), array<float>(), array<float>(), true, false, 0};
  if (what == "adamw")
    masked_adamw_cuda(spec, tensors, context());
  else if (what == "sgd")
    masked_sgd_cuda(spec, tensors, context());
  else
    throw std::invalid_argument("update has no " + what);
}

}  // namespace

bool list_launch(const std::string& op, std::istream& words) {
  if (op != "magnitude" && op != "perturb" && op != "update") return false;
  std::string what, dtype;
  if (!(words >> what >> dtype)) throw std::invalid_argument(op + " takes what and dtype");
  if (op == "magnitude") magnitude(what, dtype_of(dtype));
  if (op == "perturb") perturb(what, dtype_of(dtype));
  if (op == "update") update(what, dtype_of(dtype));
  return true;
}

}  // namespace longspan::kernels
