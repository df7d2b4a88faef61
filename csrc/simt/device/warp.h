#pragma once
// Warp operations in their _sync form. All lanes of `mask` must come to the same operation on the same source line.
#include "simt/device/language.h"

namespace simt {

int lane_index();
void warp_sync(uint32_t mask, const Caller& caller);
/// The bits of lane `source`; a lane that does not take part gives all ones, and a report.
uint64_t warp_shuffle(uint32_t mask, uint64_t bits, int source, const Caller& caller);
uint32_t warp_ballot(uint32_t mask, bool predicate, const Caller& caller);
/// The lanes that have the same bits as this one.
uint32_t warp_match(uint32_t mask, uint64_t bits, const Caller& caller);

enum class Reduction : uint8_t { kAdd, kMinSigned, kMaxSigned, kMinUnsigned, kMaxUnsigned, kAnd, kOr, kXor };
uint32_t warp_reduce(uint32_t mask, uint32_t value, Reduction reduction, const Caller& caller);

template <class T>
SIMT_ENGINE uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a warp operation moves at most 8 bytes");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  return bits;
}

template <class T>
SIMT_ENGINE T shuffle(uint32_t mask, T value, int source, const Caller& caller) {
  const uint64_t bits = warp_shuffle(mask, to_bits(value), source, caller);
  T result;
  memcpy(&result, &bits, sizeof result);
  return result;
}

}  // namespace simt

inline void __syncwarp(uint32_t mask = ~0u, simt::Caller caller = simt::Caller::current()) { simt::warp_sync(mask, caller); }

template <class T>
SIMT_ENGINE T __shfl_sync(uint32_t mask, T value, int source, int width = 32,
                          simt::Caller caller = simt::Caller::current()) {
  const int first = simt::lane_index() & ~(width - 1);
  return simt::shuffle(mask, value, first + (source & (width - 1)), caller);
}
// A source outside the lane's segment of `width` lanes gives the lane its own value.
template <class T>
SIMT_ENGINE T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = 32,
                             simt::Caller caller = simt::Caller::current()) {
  const int lane = simt::lane_index(), source = lane - int(delta);
  return simt::shuffle(mask, value, source < (lane & ~(width - 1)) ? lane : source, caller);
}
template <class T>
SIMT_ENGINE T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = 32,
                               simt::Caller caller = simt::Caller::current()) {
  const int lane = simt::lane_index(), source = lane + int(delta);
  return simt::shuffle(mask, value, source > (lane | (width - 1)) ? lane : source, caller);
}
// Unlike the others, xor may read from an earlier segment.
template <class T>
SIMT_ENGINE T __shfl_xor_sync(uint32_t mask, T value, int lanes, int width = 32,
                              simt::Caller caller = simt::Caller::current()) {
  const int lane = simt::lane_index(), source = lane ^ lanes;
  return simt::shuffle(mask, value, source > (lane | (width - 1)) ? lane : source, caller);
}

inline uint32_t __ballot_sync(uint32_t mask, int predicate, simt::Caller caller = simt::Caller::current()) {
  return simt::warp_ballot(mask, predicate != 0, caller);
}
inline int __any_sync(uint32_t mask, int predicate, simt::Caller caller = simt::Caller::current()) {
  return simt::warp_ballot(mask, predicate != 0, caller) != 0;
}
inline int __all_sync(uint32_t mask, int predicate, simt::Caller caller = simt::Caller::current()) {
  return simt::warp_ballot(mask, predicate == 0, caller) == 0;
}
template <class T>
SIMT_ENGINE uint32_t __match_any_sync(uint32_t mask, T value, simt::Caller caller = simt::Caller::current()) {
  return simt::warp_match(mask, simt::to_bits(value), caller);
}
template <class T>
SIMT_ENGINE uint32_t __match_all_sync(uint32_t mask, T value, int* all, simt::Caller caller = simt::Caller::current()) {
  *all = simt::warp_match(mask, simt::to_bits(value), caller) == mask;
  return *all ? mask : 0;
}

/// The weakest answer that the language allows: the lane itself. Kernels must not depend on more.
SIMT_ENGINE uint32_t __activemask() { return 1u << simt::lane_index(); }

inline uint32_t __reduce_add_sync(uint32_t mask, uint32_t value, simt::Caller caller = simt::Caller::current()) {
  return simt::warp_reduce(mask, value, simt::Reduction::kAdd, caller);
}
inline int __reduce_add_sync(uint32_t mask, int value, simt::Caller caller = simt::Caller::current()) {
  return int(simt::warp_reduce(mask, uint32_t(value), simt::Reduction::kAdd, caller));
}
inline uint32_t __reduce_min_sync(uint32_t mask, uint32_t value, simt::Caller caller = simt::Caller::current()) {
  return simt::warp_reduce(mask, value, simt::Reduction::kMinUnsigned, caller);
}
inline int __reduce_min_sync(uint32_t mask, int value, simt::Caller caller = simt::Caller::current()) {
  return int(simt::warp_reduce(mask, uint32_t(value), simt::Reduction::kMinSigned, caller));
}
inline uint32_t __reduce_max_sync(uint32_t mask, uint32_t value, simt::Caller caller = simt::Caller::current()) {
  return simt::warp_reduce(mask, value, simt::Reduction::kMaxUnsigned, caller);
}
inline int __reduce_max_sync(uint32_t mask, int value, simt::Caller caller = simt::Caller::current()) {
  return int(simt::warp_reduce(mask, uint32_t(value), simt::Reduction::kMaxSigned, caller));
}
inline uint32_t __reduce_and_sync(uint32_t mask, uint32_t value, simt::Caller caller = simt::Caller::current()) {
  return simt::warp_reduce(mask, value, simt::Reduction::kAnd, caller);
}
inline uint32_t __reduce_or_sync(uint32_t mask, uint32_t value, simt::Caller caller = simt::Caller::current()) {
  return simt::warp_reduce(mask, value, simt::Reduction::kOr, caller);
}
inline uint32_t __reduce_xor_sync(uint32_t mask, uint32_t value, simt::Caller caller = simt::Caller::current()) {
  return simt::warp_reduce(mask, value, simt::Reduction::kXor, caller);
}
