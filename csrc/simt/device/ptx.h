#pragma once
// The instructions that kernels reach through namespace ptx; same signatures as in common/simt.h.
#include "simt/device/language.h"

namespace simt {

enum class MmaType : uint8_t { kBFloat16, kHalf };
void mma_m16n8k16(float* d, const uint32_t* a, const uint32_t* b, MmaType type, const Caller& caller);
void ldmatrix_x4(uint32_t* registers, const void* row, bool transposed, const Caller& caller);
void cp_async16(void* shared, const void* global, int source_bytes, const Caller& caller);
void cp_async_commit();
void cp_async_wait(int pending);
float ex2(float x);

}  // namespace simt

namespace ptx {

using simt::Caller;

/// d[16x8] += a[16x16] b[16x8] on one warp, float accumulation.
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __nv_bfloat16,
                         Caller caller = Caller::current()) {
  simt::mma_m16n8k16(d, a, b, simt::MmaType::kBFloat16, caller);
}
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __half,
                         Caller caller = Caller::current()) {
  simt::mma_m16n8k16(d, a, b, simt::MmaType::kHalf, caller);
}

/// Four 8x8 matrices of 16-bit elements; lane i gives the address of row i % 8 of matrix i / 8.
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, Caller caller = Caller::current()) {
  simt::ldmatrix_x4(r, row, false, caller);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, Caller caller = Caller::current()) {
  simt::ldmatrix_x4(r, row, true, caller);
}

/// Copies `source_bytes` (0 to 16) to shared memory and zeroes the rest of the 16 bytes; both addresses 16-byte aligned.
inline void cp_async16(void* shared, const void* global, int source_bytes = 16, Caller caller = Caller::current()) {
  simt::cp_async16(shared, global, source_bytes, caller);
}
inline void cp_async_commit() { simt::cp_async_commit(); }
/// Waits until at most `Pending` of this thread's latest groups are in flight.
template <int Pending>
inline void cp_async_wait() {
  simt::cp_async_wait(Pending);
}

/// 2^x, subnormals flushed.
inline float ex2(float x) { return simt::ex2(x); }

}  // namespace ptx
