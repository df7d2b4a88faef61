// What CUDA C++ makes of ordinary code: structs as parameters, local arrays, calls, switches, wide integers, constants,
// the mathematical library, 16-bit arithmetic.
#include "common/simt.h"

struct Problem {
  const float* x;
  float* y;
  int count;
  float table[6];
  long long stride[3];
};

// Indexing the array in the parameter makes nvcc copy it to local memory.
extern "C" __global__ void structure(const Problem p, int shift) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < p.count) p.y[i * p.stride[1]] = p.x[i] * p.table[(i + shift) % 6];
}

__device__ __noinline__ float horner(float x, Problem p, int degree) {
  float sum = x;
  for (int i = 0; i < degree; i++) sum = sum * x + p.table[i % 6];
  return sum;
}
__device__ __noinline__ float2 plus_minus(float a, float b) { return make_float2(a + b, a - b); }

extern "C" __global__ void calls(const Problem p, int degree) {
  const int i = threadIdx.x;
  float row[8];
  for (int k = 0; k < 8; k++) row[k] = p.x[8 * i + k];
  row[degree % 8] += 1.f;
  const float2 both = plus_minus(horner(row[(i + degree) % 8], p, degree), row[i % 8]);
  p.y[i] = both.x * both.y;
}

extern "C" __global__ void switches(const int* x, int* y) {
  int v = x[threadIdx.x];
  switch (v) {
    case 0: v = 11; break;
    case 1: v = v * 7 + threadIdx.x; break;
    case 2: v -= 5; [[fallthrough]];
    case 3: v ^= 0x55; break;
    case 4: v = __popc(v * 12345); break;
    case 5: v = -v; break;
    case 6: v = v << 9; break;
    case 9: v = 1; break;
    default: v = 1000;
  }
  y[threadIdx.x] = v;
}

__constant__ int kWeights[5] = {3, 1, 4, 1, 5};
__device__ unsigned long long total = 7;

extern "C" __global__ void integers(const long long* x, long long* y, int n) {
  const int i = threadIdx.x;
  const long long v = x[i];
  const __int128 product = (__int128)v * x[(i + 1) % n] + 17;
  y[0 * n + i] = (long long)(product >> 64);
  y[1 * n + i] = v / 7;
  y[2 * n + i] = v % (n + 3);
  y[3 * n + i] = (short)v * kWeights[i % 5];
  y[4 * n + i] = __brevll(v);
  y[5 * n + i] = (int)v / (n - 100);
  y[6 * n + i] = __ffsll(v);
  y[7 * n + i] = (unsigned)v % 10u;
  atomicAdd(&total, (unsigned long long)i);
  __syncthreads();
  y[8 * n + i] = total;
}

// 0 to 15, one function of x each.
extern "C" __global__ void functions(const float* x, float* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float v = x[i];
  float* out = y + i;
  out[0 * n] = expf(v);
  out[1 * n] = exp2f(v);
  out[2 * n] = logf(fabsf(v));
  out[3 * n] = log2f(fabsf(v));
  out[4 * n] = tanhf(v);
  out[5 * n] = sinf(v);
  out[6 * n] = cosf(v);
  out[7 * n] = rsqrtf(fabsf(v));
  out[8 * n] = 1.f / v;
  out[9 * n] = v / 3.f;
  out[10 * n] = erff(v);
  out[11 * n] = log1pf(fabsf(v));
  out[12 * n] = expm1f(v);
  out[13 * n] = powf(fabsf(v), 1.7f);
  out[14 * n] = sqrtf(fabsf(v));
  out[15 * n] = fmodf(v, 1.5f);
}

template <class T>
__global__ void halves(const T* a, const T* b, T* y, int n) {
  const int i = threadIdx.x;
  y[0 * n + i] = a[i] + b[i];
  y[1 * n + i] = a[i] * b[i];
  y[2 * n + i] = a[i] / b[i];
  y[3 * n + i] = __hfma(a[i], b[i], a[i]);
  y[4 * n + i] = __hmax(a[i], b[i]);
  y[5 * n + i] = a[i] < b[i] ? -a[i] : b[i];
  y[6 * n + i] = T(float(a[i]) * 1.1f);
}
template __global__ void halves<__half>(const __half*, const __half*, __half*, int);
template __global__ void halves<__nv_bfloat16>(const __nv_bfloat16*, const __nv_bfloat16*, __nv_bfloat16*, int);

extern "C" __global__ void block_sum(const float* x, float* y, int n) {
  __shared__ float sums[32];
  float sum = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += x[i];
  for (int o = 16; o > 0; o /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, o);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < blockDim.x / 32; w++) sum += sums[w];
    y[blockIdx.x] = sum;
  }
}
