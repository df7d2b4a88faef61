#pragma once
// Matrix products of kernels by aten::mm: on the current stream, by the library and in the modes (TF32) of the user's torch.
#include <array>

#include "ops/tensor.h"

namespace longspan::ops {

/// Products in the memory of the device of `like`, which must outlive this. Operands have one dtype; a result in float32 of
/// bfloat16 operands is not rounded in between (CUDA only, as aten::mm's out_dtype is).
class AtenGemm {
 public:
  explicit AtenGemm(const Tensor& like) : like_(like) {}
  kernels::Gemm gemm() { return {this, &multiply}; }

 private:
  Tensor matrix(const void* data, int64_t rows, int64_t columns, int64_t stride, kernels::DType dtype) const {
    const int64_t sizes[] = {rows, columns}, strides[] = {stride, 1};
    return torch::stable::from_blob(const_cast<void*>(data), sizes, strides, like_.device(), scalar_type(dtype));
  }
  static ScalarType scalar_type(kernels::DType dtype) {
    switch (dtype) {
      case kernels::DType::kFloat32: return ScalarType::Float;
      case kernels::DType::kFloat64: return ScalarType::Double;
      case kernels::DType::kFloat16: return ScalarType::Half;
      default: return ScalarType::BFloat16;
    }
  }

  static void multiply(void* self, const kernels::GemmArgs& g) {
    const auto& owner = *static_cast<AtenGemm*>(self);
    STD_TORCH_CHECK(g.dtype_a == g.dtype_b && g.beta == 0, "longspan: aten::mm has no such product");
    const auto operand = [&](bool transposed, const void* data, int64_t rows, int64_t columns, int64_t stride) {
      if (!transposed) return owner.matrix(data, rows, columns, stride, g.dtype_a);
      return torch::stable::transpose(owner.matrix(data, columns, rows, stride, g.dtype_a), 0, 1);
    };
    const Tensor a = operand(g.transpose_a, g.a, g.m, g.k, g.lda), b = operand(g.transpose_b, g.b, g.k, g.n, g.ldb);
    const Tensor c = owner.matrix(g.c, g.m, g.n, g.ldc, g.dtype_c);
    using torch::stable::detail::from;
    if (g.dtype_a == g.dtype_c) {
      std::array<StableIValue, 3> stack{from(a), from(b), from(c)};
      call("out", stack.data());
    } else {
      std::array<StableIValue, 4> stack{from(a), from(b), from(c.scalar_type()), from(c)};
      call("dtype_out", stack.data());
    }
  }
  static void call(const char* overload, StableIValue* stack) {
    STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", overload, stack, TORCH_ABI_VERSION));
    (void)torch::stable::detail::to<Tensor>(stack[0]);  // takes and drops the reference that the op returned
  }

  const Tensor& like_;
};

}  // namespace longspan::ops
