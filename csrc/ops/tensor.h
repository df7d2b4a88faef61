#pragma once
// Between torch's ABI-stable tensors and the kernels' plain views. Only csrc/ops includes torch.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <atomic>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#include "kernels/common/context.h"

namespace longspan::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline kernels::DType dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return kernels::DType::kFloat32;
    case ScalarType::Double: return kernels::DType::kFloat64;
    case ScalarType::BFloat16: return kernels::DType::kBFloat16;
    case ScalarType::Half: return kernels::DType::kFloat16;
    default: STD_TORCH_CHECK(false, "longspan: dtype must be float32, float64, bfloat16 or float16");
  }
  return kernels::DType::kFloat32;
}

inline ScalarType statistics_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

/// The view's strides are the tensor's; the last dimension must be contiguous.
template <int N>
kernels::View<N> view_of(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == N, "longspan: a tensor has the wrong number of dimensions");
  STD_TORCH_CHECK(x.size(N - 1) <= 1 || x.stride(N - 1) == 1, "longspan: the last dimension must be contiguous");
  kernels::View<N> out;
  out.data = const_cast<void*>(x.const_data_ptr());
  out.dtype = dtype_of(x);
  for (int i = 0; i < N; ++i) out.size[i] = x.size(i), out.stride[i] = x.stride(i);
  return out;
}

/// A string argument of an op, which is released. (A parameter of type std::string would leak: the conversion of torch's
/// headers up to 2.13 copies out of a string that it never deletes.)
inline std::string taken(StringHandle text) {
  const char* data = nullptr;
  size_t length = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_string_length(text, &length));
  STABLE_TORCH_ERROR_CODE_CHECK(torch_string_c_str(text, &data));
  std::string out(data, length);
  STABLE_TORCH_ERROR_CODE_CHECK(torch_delete_string(text));
  return out;
}

inline const void* data_or_null(const std::optional<Tensor>& x) { return x ? x->const_data_ptr() : nullptr; }

/// A new [B,H,T,D] tensor with [B,T,H,D] storage, so that the projection after it reads it uncopied.
inline Tensor new_heads_last(const Tensor& like) {
  Tensor storage = torch::stable::new_empty(like, {like.size(0), like.size(2), like.size(1), like.size(3)});
  return torch::stable::transpose(storage, 1, 2);
}

/// Runs kernels on torch's thread pool and in torch's memory; scratch lives as long as this object.
class TorchContext {
 public:
  explicit TorchContext(const Tensor& like) : like_(like), workers_(int(torch::stable::get_num_threads())) {}

  kernels::Context context() {
    return {{this, workers_, &run}, {}, {this, &get}, kernels::select_isa(std::getenv("LONGSPAN_ISA"))};
  }

 private:
  static void run(void* self, int64_t tasks, void (*task)(void*, int64_t, int), void* context) {
    std::atomic<int64_t> next{0};
    const int64_t workers = std::min<int64_t>(static_cast<TorchContext*>(self)->workers_, tasks);
    torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
      for (int64_t worker = begin; worker < end; ++worker)
        for (int64_t i = next++; i < tasks; i = next++) task(context, i, int(worker));
    });
  }

  static void* get(void* self, int64_t bytes) {
    constexpr int64_t kAlignment = 64;
    auto* owner = static_cast<TorchContext*>(self);
    Tensor block = torch::stable::new_empty(owner->like_, {bytes + kAlignment}, ScalarType::Byte);
    auto address = reinterpret_cast<uintptr_t>(block.mutable_data_ptr());
    owner->blocks_.push_back(std::move(block));
    return reinterpret_cast<void*>(address + (kAlignment - address % kAlignment) % kAlignment);
  }

  const Tensor& like_;
  int workers_;
  std::vector<Tensor> blocks_;
};

}  // namespace longspan::ops
