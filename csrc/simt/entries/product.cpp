#include "simt/entries/product.h"

#include "common/simt.h"
#include "simt/engine/recording.h"
#include "simt/engine/shadow.h"

namespace simt {
namespace {

using longspan::kernels::DType;
using longspan::kernels::element_size;
using longspan::kernels::GemmArgs;

double load(const void* x, int64_t i, DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return static_cast<const float*>(x)[i];
    case DType::kFloat16: return __half2float(static_cast<const __half*>(x)[i]);
    default: return __bfloat162float(static_cast<const __nv_bfloat16*>(x)[i]);
  }
}

void store(void* x, int64_t i, DType dtype, double value) {
  switch (dtype) {
    case DType::kFloat32: static_cast<float*>(x)[i] = float(value); break;
    case DType::kFloat16: static_cast<__half*>(x)[i] = __float2half_rn(float(value)); break;
    default: static_cast<__nv_bfloat16*>(x)[i] = __float2bfloat16_rn(float(value));
  }
}

void multiply(void*, const GemmArgs& g) {
  if (recording.active) recording.steps.emplace_back(g);
  for (int64_t i = 0; i < g.m; ++i) {
    for (int64_t j = 0; j < g.n; ++j) {
      const int64_t at = i * g.ldc + j;
      double sum = g.beta != 0 ? g.beta * load(g.c, at, g.dtype_c) : 0;
      for (int64_t k = 0; k < g.k; ++k)
        sum += load(g.a, g.transpose_a ? k * g.lda + i : i * g.lda + k, g.dtype_a) *
               load(g.b, g.transpose_b ? j * g.ldb + k : k * g.ldb + j, g.dtype_b);
      store(g.c, at, g.dtype_c, sum);
    }
    mark_written(static_cast<char*>(g.c) + i * g.ldc * element_size(g.dtype_c), size_t(g.n * element_size(g.dtype_c)));
  }
}

}  // namespace

longspan::kernels::Gemm host_product() { return {nullptr, multiply}; }

}  // namespace simt
