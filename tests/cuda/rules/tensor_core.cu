// mma.sync and ldmatrix.
#include "rules/case.h"

namespace rules::tensor_core {
namespace {

constexpr int kRows = 16, kColumns = 8, kDepth = 16;

/// d[16,8] = a[16,16] b[8,16]^T from global memory through ldmatrix; input is a, then b.
template <class T>
__global__ void product_kernel(const T* input, float* output) {
  T* tile = simt::dyn_smem<T>();  // rows of 16 elements: a, then b
  const int lane = threadIdx.x;
  for (int i = lane; i < (kRows + kColumns) * kDepth; i += 32) tile[i] = input[i];
  __syncwarp();
  uint32_t a[4], b[4];
  const T* row = tile + lane % 16 * kDepth + lane / 16 * 8;
  if (simt::mutant(3)) row += 1;
  if (simt::mutant(4)) row += kDepth * 16;
  if (simt::mutant(2))
    ptx::ldmatrix_x4_trans(a, row);
  else
    ptx::ldmatrix_x4(a, row);  // BUG 3 4 6
  ptx::ldmatrix_x4(b, tile + (kRows + lane % 8) * kDepth + lane / 8 % 2 * 8);
  if (simt::mutant(1)) {
    const uint32_t swapped = a[1];
    a[1] = a[2];
    a[2] = swapped;
  }
  float d[4] = {};
  if (!simt::mutant(5) || lane < 16) ptx::mma_m16n8k16(d, a, {b[0], b[1]}, T());  // BUG 5
  const int group = lane / 4, first = lane % 4 * 2;
  for (int i = 0; i < 4; ++i) output[(group + i / 2 * 8) * kColumns + first + i % 2] = d[i];
}
template <class T>
void product(const void* input, void* output) {
  simt::launch(product_kernel<T>, 1, simt::mutant(6) ? 16 : 32, (kRows + kColumns) * kDepth * sizeof(T), nullptr,
               static_cast<const T*>(input), static_cast<float*>(output));
}
void product_bf16(simt::Device&, const void* input, void* output, int64_t) { product<__nv_bfloat16>(input, output); }
void product_f16(simt::Device&, const void* input, void* output, int64_t) { product<__half>(input, output); }
RULE_CASE(product_bf16);
RULE_CASE(product_f16);

/// The four matrices of a [16, 64] tile column block by ldmatrix, rows of 128 bytes: plain rows all start in one bank
/// group (mutant 1), an exclusive or of the row spreads them.
__global__ void swizzle_kernel(const uint16_t* input, uint32_t* output) {
  uint16_t* tile = simt::dyn_smem<uint16_t>();
  const int lane = threadIdx.x;
  const auto at = [](int row, int chunk) { return row * 64 + (simt::mutant(1) ? chunk : chunk ^ row % 8) * 8; };
  for (int i = lane; i < 16 * 8; i += 32)
    for (int j = 0; j < 8; ++j) tile[at(i / 8, i % 8) + j] = input[i * 8 + j];
  __syncwarp();
  uint32_t r[4];
  ptx::ldmatrix_x4(r, tile + at(lane % 16, lane / 16));  // BUG 1
  for (int i = 0; i < 4; ++i) output[i * 32 + lane] = r[i];
}
void swizzle(simt::Device&, const void* input, void* output, int64_t) {
  simt::launch(swizzle_kernel, 1, 32, 16 * 64 * sizeof(uint16_t), nullptr, static_cast<const uint16_t*>(input),
               static_cast<uint32_t*>(output));
}
RULE_CASE(swizzle);

/// One mma on given registers. input: 32 x (4 of a, 2 of b); output: 32 x 4 floats.
template <class T>
__global__ void fragments_kernel(const uint32_t* input, float* output) {
  const uint32_t* own = input + threadIdx.x * 6;
  const uint32_t a[4] = {own[0], own[1], own[2], own[3]}, b[2] = {own[4], own[5]};
  float d[4] = {};
  ptx::mma_m16n8k16(d, a, b, T());
  for (int i = 0; i < 4; ++i) output[threadIdx.x * 4 + i] = d[i];
}
template <class T>
void fragments(const void* input, void* output) {
  simt::launch(fragments_kernel<T>, 1, 32, 0, nullptr, static_cast<const uint32_t*>(input), static_cast<float*>(output));
}
void fragments_bf16(simt::Device&, const void* input, void* output, int64_t) { fragments<__nv_bfloat16>(input, output); }
void fragments_f16(simt::Device&, const void* input, void* output, int64_t) { fragments<__half>(input, output); }
RULE_CASE(fragments_bf16);
RULE_CASE(fragments_f16);

/// input: 32 rows of 8 elements; output: 32 x 4 registers, then 32 x 4 of the transposed form.
__global__ void ldmatrix_kernel(const uint16_t* input, uint32_t* output) {
  uint16_t* tile = simt::dyn_smem<uint16_t>();
  const int lane = threadIdx.x;
  for (int i = 0; i < 8; ++i) tile[lane * 8 + i] = input[lane * 8 + i];
  __syncwarp();
  uint32_t plain[4], transposed[4];
  ptx::ldmatrix_x4(plain, tile + lane * 8);
  ptx::ldmatrix_x4_trans(transposed, tile + lane * 8);
  for (int i = 0; i < 4; ++i) {
    output[lane * 4 + i] = plain[i];
    output[128 + lane * 4 + i] = transposed[i];
  }
}
void ldmatrix(simt::Device&, const void* input, void* output, int64_t) {
  simt::launch(ldmatrix_kernel, 1, 32, 32 * 16, nullptr, static_cast<const uint16_t*>(input),
               static_cast<uint32_t*>(output));
}
RULE_CASE(ldmatrix);

}  // namespace
}  // namespace rules::tensor_core
