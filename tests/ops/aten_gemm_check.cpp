// torch op aten_gemm_check::multiply: a product of AtenGemm in this process's memory, for its test.
#include "ops/aten_gemm.h"

namespace {

using longspan::kernels::GemmArgs;
using torch::stable::Tensor;

/// a and b as they are stored, c to be written; m, n, k of the product.
void multiply(Tensor a, Tensor b, Tensor c, bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k) {
  longspan::ops::AtenGemm aten(a);
  const auto gemm = aten.gemm();
  const GemmArgs args{transpose_a,
                      transpose_b,
                      m,
                      n,
                      k,
                      a.const_data_ptr(),
                      a.stride(0),
                      b.const_data_ptr(),
                      b.stride(0),
                      0,
                      c.mutable_data_ptr(),
                      c.stride(0),
                      longspan::ops::dtype_of(a),
                      longspan::ops::dtype_of(b),
                      longspan::ops::dtype_of(c)};
  gemm.run(gemm.self, args);
}

}  // namespace

STABLE_TORCH_LIBRARY(aten_gemm_check, m) {
  m.def("multiply(Tensor a, Tensor b, Tensor(a!) c, bool transpose_a, bool transpose_b, int m, int n, int k) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(aten_gemm_check, CPU, m) { m.impl("multiply", TORCH_BOX(&multiply)); }
