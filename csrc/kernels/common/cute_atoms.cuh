#pragma once
// CuTe's atoms for the product: CUTLASS's own under nvcc; in the emulation the same, through the wrappers of namespace ptx.
#include "common/simt.h"
// CuTe after the wrappers: they say what the words of CUDA mean.
#include <cute/algorithm/gemm.hpp>
#include <cute/tensor.hpp>

namespace longspan::kernels {

/// CuTe's name of a 16-bit type, and its product of fragments with float accumulation.
template <class S>
struct CuteElement;

#if defined(__CUDACC__)
template <>
struct CuteElement<__nv_bfloat16> {
  using Type = cute::bfloat16_t;
  using Mma = cute::SM80_16x8x16_F32BF16BF16F32_TN;
};
template <>
struct CuteElement<__half> {
  using Type = cute::half_t;
  using Mma = cute::SM80_16x8x16_F32F16F16F32_TN;
};
using LoadMatrix = cute::SM75_U32x4_LDSM_N;
using LoadMatrixTransposed = cute::SM75_U16x8_LDSM_T;
#else
template <class S, class Real>
struct EmulatedMma : Real {
  static void fma(float& d0, float& d1, float& d2, float& d3, const uint32_t& a0, const uint32_t& a1, const uint32_t& a2,
                  const uint32_t& a3, const uint32_t& b0, const uint32_t& b1, const float& c0, const float& c1,
                  const float& c2, const float& c3) {
    float d[4] = {c0, c1, c2, c3};
    ptx::mma_m16n8k16(d, {a0, a1, a2, a3}, {b0, b1}, S());
    d0 = d[0], d1 = d[1], d2 = d[2], d3 = d[3];
  }
};
template <>
struct CuteElement<__nv_bfloat16> {
  using Type = cute::bfloat16_t;
  using Mma = EmulatedMma<__nv_bfloat16, cute::SM80_16x8x16_F32BF16BF16F32_TN>;
};
template <>
struct CuteElement<__half> {
  using Type = cute::half_t;
  using Mma = EmulatedMma<__half, cute::SM80_16x8x16_F32F16F16F32_TN>;
};
struct LoadMatrix : cute::SM75_U32x4_LDSM_N {
  static void copy(const cute::uint128_t& row, uint32_t& r0, uint32_t& r1, uint32_t& r2, uint32_t& r3) {
    uint32_t r[4];
    ptx::ldmatrix_x4(r, &row);
    r0 = r[0], r1 = r[1], r2 = r[2], r3 = r[3];
  }
};
struct LoadMatrixTransposed : cute::SM75_U16x8_LDSM_T {
  static void copy(const cute::uint128_t& row, uint32_t& r0, uint32_t& r1, uint32_t& r2, uint32_t& r3) {
    uint32_t r[4];
    ptx::ldmatrix_x4_trans(r, &row);
    r0 = r[0], r1 = r[1], r2 = r[2], r3 = r[3];
  }
};
#endif

}  // namespace longspan::kernels

#if !defined(__CUDACC__)
namespace cute {

template <class S, class Real>
struct MMA_Traits<longspan::kernels::EmulatedMma<S, Real>> : MMA_Traits<Real> {};
template <>
struct Copy_Traits<longspan::kernels::LoadMatrix> : Copy_Traits<SM75_U32x4_LDSM_N> {};
template <>
struct Copy_Traits<longspan::kernels::LoadMatrixTransposed> : Copy_Traits<SM75_U16x8_LDSM_T> {};

}  // namespace cute
#endif
