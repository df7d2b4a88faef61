// One tile of a matrix product on tensor cores, from shared memory filled by cp.async: c[16x16] = a[16x16] b, with b
// stored as [n][k] or, transposed on the way by ldmatrix, as [k][n]. SWAPPED exchanges two registers of A inside the
// assembly string, which only what nvcc emits can show.
#include "common/simt.h"

#ifdef SWAPPED
__device__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __nv_bfloat16) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%6,%5,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __half type) {
  ptx::mma_m16n8k16(d, a, b, type);
}
#else
template <class T>
__device__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], T type) {
  ptx::mma_m16n8k16(d, a, b, type);
}
#endif

template <class T, bool Transposed>
__global__ void tile(const T* a, const T* b, float* c) {
  __shared__ __align__(128) T left[256];
  __shared__ __align__(128) T right[256];
  const int lane = threadIdx.x;
  ptx::cp_async16(left + 8 * lane, a + 8 * lane);
  ptx::cp_async16(right + 8 * lane, b + 8 * lane);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  __syncwarp();

  uint32_t x[4], y[4];
  ptx::ldmatrix_x4(x, left + 16 * (lane % 16) + 8 * (lane / 16));
  if (Transposed) {
    ptx::ldmatrix_x4_trans(y, right + 16 * (lane % 8 + 8 * (lane / 8 % 2)) + 8 * (lane / 16));
  } else {
    ptx::ldmatrix_x4(y, right + 16 * (lane % 8 + 8 * (lane / 16)) + 8 * (lane / 8 % 2));
  }
  for (int n = 0; n < 2; n++) {
    float d[4] = {1.f, 2.f, 3.f, 4.f};
    const uint32_t half[2] = {y[2 * n], y[2 * n + 1]};
    multiply(d, x, half, T());
    for (int i = 0; i < 4; i++) {
      c[16 * (lane / 4 + 8 * (i / 2)) + 8 * n + 2 * (lane % 4) + i % 2] = d[i];
    }
  }
}

template __global__ void tile<__nv_bfloat16, false>(const __nv_bfloat16*, const __nv_bfloat16*, float*);
template __global__ void tile<__nv_bfloat16, true>(const __nv_bfloat16*, const __nv_bfloat16*, float*);
template __global__ void tile<__half, false>(const __half*, const __half*, float*);
template __global__ void tile<__half, true>(const __half*, const __half*, float*);
