#pragma once
// Atomic read-modify-write. One thread runs at a time, so plain arithmetic is atomic; the checks are told that it is.
#include "simt/device/language.h"

namespace simt {

/// False when the address may not be accessed; the report has been made.
bool atomic_access(const void* address, size_t bytes, const Caller& caller);

template <class T, class F>
SIMT_ENGINE T atomic_update(T* address, F&& update, const Caller& caller) {
  T old{};
  if (!atomic_access(address, sizeof(T), caller)) return old;
  memcpy(&old, address, sizeof old);
  const T updated = update(old);
  memcpy(address, &updated, sizeof updated);
  return old;
}

}  // namespace simt

// The operand's type does not take part in deduction, as in CUDA's own overloads: atomicAdd(&size_t_value, 1).
#define SIMT_ATOMIC(name, expression)                                                                                       \
  template <class T>                                                                                                        \
  SIMT_ENGINE T name(T* address, typename simt::Identity<T>::type operand, simt::Caller caller = simt::Caller::current()) { \
    return simt::atomic_update(address, [&](T old) -> T { return expression; }, caller);                                    \
  }
SIMT_ATOMIC(atomicAdd, T(old + operand))
SIMT_ATOMIC(atomicSub, T(old - operand))
SIMT_ATOMIC(atomicMin, operand < old ? operand : old)
SIMT_ATOMIC(atomicMax, old < operand ? operand : old)
SIMT_ATOMIC(atomicAnd, T(old& operand))
SIMT_ATOMIC(atomicOr, T(old | operand))
SIMT_ATOMIC(atomicXor, T(old ^ operand))
SIMT_ATOMIC(atomicExch, operand)
SIMT_ATOMIC(atomicInc, old >= operand ? T(0) : T(old + 1))
SIMT_ATOMIC(atomicDec, old == T(0) || operand < old ? operand : T(old - 1))
#undef SIMT_ATOMIC

template <class T>
SIMT_ENGINE T atomicCAS(T* address, typename simt::Identity<T>::type expected, typename simt::Identity<T>::type desired,
                        simt::Caller caller = simt::Caller::current()) {
  return simt::atomic_update(address, [&](T old) -> T { return old == expected ? desired : old; }, caller);
}
