#pragma once
// The thread's place in the grid, and the barriers of its block.
#include "simt/device/language.h"

namespace simt {

// Constant for as long as a kernel's frame lives, so the compiler may keep them in registers.
[[gnu::const]] uint3 thread_index();
[[gnu::const]] uint3 block_index();
[[gnu::const]] dim3 block_dimensions();
[[gnu::const]] dim3 grid_dimensions();

enum class BarrierKind : uint8_t { kPlain, kCount, kAnd, kOr };
int block_barrier(BarrierKind kind, int predicate, const Caller& caller);

[[noreturn]] void trap(const Caller& caller);

}  // namespace simt

#define threadIdx (::simt::thread_index())
#define blockIdx (::simt::block_index())
#define blockDim (::simt::block_dimensions())
#define gridDim (::simt::grid_dimensions())
inline constexpr int warpSize = 32;

inline void __syncthreads(simt::Caller caller = simt::Caller::current()) {
  simt::block_barrier(simt::BarrierKind::kPlain, 0, caller);
}
inline int __syncthreads_count(int predicate, simt::Caller caller = simt::Caller::current()) {
  return simt::block_barrier(simt::BarrierKind::kCount, predicate, caller);
}
inline int __syncthreads_and(int predicate, simt::Caller caller = simt::Caller::current()) {
  return simt::block_barrier(simt::BarrierKind::kAnd, predicate, caller);
}
inline int __syncthreads_or(int predicate, simt::Caller caller = simt::Caller::current()) {
  return simt::block_barrier(simt::BarrierKind::kOr, predicate, caller);
}

// Memory is sequentially consistent here: fences order nothing further, and prove nothing.
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) {}
[[noreturn]] inline void __trap(simt::Caller caller = simt::Caller::current()) { simt::trap(caller); }
