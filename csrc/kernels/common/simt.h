#pragma once
// What device code may use beside plain CUDA C++, in two worlds: nvcc gives PTX, g++ gives a CPU emulation (csrc/simt)
// that runs every thread as a fibre and checks races, bounds, initialisation and convergence.
//
// Rules of kernels: shared memory through simt::dyn_smem<T>() and SIMT_SHARED(T, name); PTX only through the wrappers in
// namespace ptx; warp operations in their _sync form; launches through simt::launch. tests/house/test_cuda_rules.py
// enforces them.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(__CUDACC__)
#include <cuda_runtime.h>

#define SIMT_DEVICE __device__ __forceinline__
#define SIMT_UNROLL _Pragma("unroll")
#define SIMT_UNROLL_4 _Pragma("unroll 4")
/// `SIMT_SHARED(float[32], sums);` declares a static shared array.
#define SIMT_SHARED(T, name) __shared__ typename ::simt::Identity<T>::type name

namespace simt {

template <class T>
struct Identity {
  using type = T;
};

/// The block's dynamic shared memory, aligned to 1024 bytes.
template <class T>
__device__ __forceinline__ T* dyn_smem() {
  extern __shared__ __align__(1024) unsigned char simt_dynamic_shared[];
  return reinterpret_cast<T*>(simt_dynamic_shared);
}

/// Whether planted bug `number` is active; only the emulation ever says yes.
SIMT_DEVICE constexpr bool mutant(int) { return false; }

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t smem_bytes, cudaStream_t stream,
                   Arguments&&... arguments) {
  constexpr size_t kWithoutOptIn = 48 * 1024;
  if (smem_bytes > kWithoutOptIn) {
    const auto set = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          int(smem_bytes));
    if (set != cudaSuccess) return set;
  }
  kernel<<<grid, block, smem_bytes, stream>>>(Parameters(arguments)...);
  return cudaGetLastError();
}

inline std::string error_text(cudaError_t error) { return cudaGetErrorString(error); }

}  // namespace simt

namespace ptx {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

/// d[16x8] += a[16x16] b[16x8] on one warp, float accumulation. Fragments: PTX ISA, "Matrix Fragments for mma.m16n8k16".
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __nv_bfloat16) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __half) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// Four 8x8 matrices of 16-bit elements; lane i gives the address of row i % 8 of matrix i / 8.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

/// Copies `source_bytes` (0 to 16) to shared memory and zeroes the rest of the 16 bytes; both addresses 16-byte aligned.
__device__ __forceinline__ void cp_async16(void* shared, const void* global, int source_bytes = 16) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)), "l"(global),
               "r"(source_bytes)
               : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
/// Waits until at most `Pending` of this thread's latest groups are in flight.
template <int Pending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(Pending) : "memory");
}

/// 2^x, about 2 ulp, subnormals flushed.
__device__ __forceinline__ float ex2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace ptx

#else
#define SIMT_UNROLL
#define SIMT_UNROLL_4
#include "simt/device.h"
#endif

namespace simt {

/// Throws std::runtime_error that names `what` unless `error` is success.
inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + error_text(error));
}

/// Two floats rounded to nearest even into one register, `low` in the low half.
SIMT_DEVICE uint32_t pack2(float low, float high, __nv_bfloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &pair, sizeof bits);
  return bits;
}
SIMT_DEVICE uint32_t pack2(float low, float high, __half) {
  const __half2 pair = __floats2half2_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &pair, sizeof bits);
  return bits;
}

SIMT_DEVICE __nv_bfloat16 rounded(float x, __nv_bfloat16) { return __float2bfloat16_rn(x); }
SIMT_DEVICE __half rounded(float x, __half) { return __float2half_rn(x); }

}  // namespace simt
