#pragma once
// Shared memory: the block's dynamic bytes, and static arrays that the engine places between guard pages.
#include "simt/device/language.h"

namespace simt {

/// One static shared array: one object per SIMT_SHARED and template instantiation, as under nvcc.
struct StaticShared {
  size_t bytes, alignment;
  const char* name;
  void* region = nullptr;  // set at the first use
};
void* static_shared(StaticShared& array);
void* dynamic_shared();

/// The block's dynamic shared memory, aligned to 1024 bytes.
template <class T>
SIMT_ENGINE T* dyn_smem() {
  return static_cast<T*>(dynamic_shared());
}

}  // namespace simt

/// `SIMT_SHARED(float[32], sums);` declares a static shared array.
#define SIMT_SHARED(T, name)                                                                                    \
  static constinit ::simt::StaticShared simt_shared_##name{sizeof(typename ::simt::Identity<T>::type),          \
                                                           alignof(typename ::simt::Identity<T>::type), #name}; \
  auto& name = *static_cast<typename ::simt::Identity<T>::type*>(::simt::static_shared(simt_shared_##name))
