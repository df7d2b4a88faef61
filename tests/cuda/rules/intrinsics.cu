// The scalar functions that g++ does not have: each against the host's answer in test_engine_intrinsics.py.
#include "rules/case.h"

namespace rules::intrinsics {
namespace {

/// Row r of the output [rows, 32] is the r-th function of each input word.
__global__ void integer_kernel(const uint32_t* input, uint32_t* output) {
  const int t = threadIdx.x;
  const uint32_t x = input[t], y = input[31 - t];
  uint32_t* row = output + t;
  const auto put = [&row](uint32_t value) {
    *row = value;
    row += 32;
  };
  put(uint32_t(__popc(x)));
  put(uint32_t(__clz(int(x))));
  put(uint32_t(__ffs(int(x))));
  put(__brev(x));
  put(__umulhi(x, y));
  put(uint32_t(__mulhi(int(x), int(y))));
  put(__byte_perm(x, y, 0x5410));
  put(__byte_perm(x, y, 0x3276));
  put(__funnelshift_l(x, y, 7));
  put(__funnelshift_r(x, y, 7));
  put(uint32_t(min(int(x), int(y))));
  put(max(x, y));
  put(uint32_t(__float2int_rn(__uint_as_float(x))));
  put(uint32_t(__float2int_rz(__uint_as_float(x))));
  put(__float_as_uint(__uint_as_float(x)));
}
void integers(simt::Device&, const void* input, void* output, int64_t) {
  simt::launch(integer_kernel, 1, 32, 0, nullptr, static_cast<const uint32_t*>(input), static_cast<uint32_t*>(output));
}
RULE_CASE(integers);

__global__ void float_kernel(const float* input, float* output) {
  const int t = threadIdx.x;
  const float x = input[t];
  float* row = output + t;
  const auto put = [&row](float value) {
    *row = value;
    row += 32;
  };
  put(ptx::ex2(x));
  put(__expf(x));
  put(rsqrtf(x * x));
  put(__fdividef(1.0f, x));
  put(__saturatef(x));
  put(__fmaf_rn(x, x, -1.0f));
  put(__uint_as_float(simt::pack2(x, 2.0f, __nv_bfloat16())));
  put(__half2float(__float2half_rn(x)));
  put(__bfloat162float(__float2bfloat16_rn(x)));
  put(fmaxf(x, __uint_as_float(0x7fc00000u)));
}
void floats(simt::Device&, const void* input, void* output, int64_t) {
  simt::launch(float_kernel, 1, 32, 0, nullptr, static_cast<const float*>(input), static_cast<float*>(output));
}
RULE_CASE(floats);

/// Every atomic once, by 32 threads on one word each.
__global__ void atomics_kernel(const int* input, int* words) {
  const int x = input[threadIdx.x];
  atomicAdd(words + 0, x);
  atomicSub(words + 1, x);
  atomicMin(words + 2, x);
  atomicMax(words + 3, x);
  atomicAnd(words + 4, ~x);
  atomicOr(words + 5, x);
  atomicXor(words + 6, x);
  atomicExch(words + 7, 5);
  atomicCAS(words + 8, 0, 77);
  atomicCAS(words + 9, 1, 77);
  atomicInc(reinterpret_cast<unsigned*>(words) + 10, 9u);
  atomicDec(reinterpret_cast<unsigned*>(words) + 11, 9u);
}
void atomics(simt::Device&, const void* input, void* output, int64_t n) {
  cudaMemsetAsync(output, 0, size_t(n) * sizeof(int), nullptr);
  simt::launch(atomics_kernel, 1, 32, 0, nullptr, static_cast<const int*>(input), static_cast<int*>(output));
}
RULE_CASE(atomics);

}  // namespace
}  // namespace rules::intrinsics
