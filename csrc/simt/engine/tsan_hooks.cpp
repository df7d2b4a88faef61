// The functions that code compiled with -fsanitize=thread calls. The hooks build has these and not the sanitizer's
// runtime; only kernel files are compiled that way.
#include <cstring>

#include "simt/engine/banks.h"
#include "simt/engine/machine.h"
#include "simt/engine/shadow.h"

namespace {

inline void access(const void* address, size_t bytes, simt::Access kind, const void* return_address) {
  if (!simt::machine.current) return;
  const simt::SiteCode site = simt::encode_call(return_address);
  if (!simt::check_access(address, bytes, kind, site)) return;
  if (const simt::Region* region = simt::find(address); region && region->shared())
    simt::note_shared_access(*simt::machine.current, address, bytes, site);
}

}  // namespace

#define READ(bytes) access(address, bytes, simt::Access::kRead, __builtin_return_address(0))
#define WRITE(bytes) access(address, bytes, simt::Access::kWrite, __builtin_return_address(0))
#define ACCESSES(bytes)                                                            \
  void __tsan_read##bytes(const void* address) { READ(bytes); }                    \
  void __tsan_write##bytes(const void* address) { WRITE(bytes); }                  \
  void __tsan_unaligned_read##bytes(const void* address) { READ(bytes); }          \
  void __tsan_unaligned_write##bytes(const void* address) { WRITE(bytes); }        \
  void __tsan_volatile_read##bytes(const void* address) { READ(bytes); }           \
  void __tsan_volatile_write##bytes(const void* address) { WRITE(bytes); }         \
  void __tsan_unaligned_volatile_read##bytes(const void* address) { READ(bytes); } \
  void __tsan_unaligned_volatile_write##bytes(const void* address) { WRITE(bytes); }

extern "C" {

ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
void __tsan_read_range(const void* address, size_t bytes) { READ(bytes); }
void __tsan_write_range(const void* address, size_t bytes) { WRITE(bytes); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

// Kernel files call these instead of the C library's (hooked_memory.h): the sanitizer's own runtime would intercept them.
void* simt_memcpy(void* target, const void* source, size_t bytes) {
  access(target, bytes, simt::Access::kWrite, __builtin_return_address(0));
  access(source, bytes, simt::Access::kRead, __builtin_return_address(0));
  return memcpy(target, source, bytes);
}
void* simt_memmove(void* target, const void* source, size_t bytes) {
  access(source, bytes, simt::Access::kRead, __builtin_return_address(0));
  access(target, bytes, simt::Access::kWrite, __builtin_return_address(0));
  return memmove(target, source, bytes);
}
void* simt_memset(void* target, int value, size_t bytes) {
  access(target, bytes, simt::Access::kWrite, __builtin_return_address(0));
  return memset(target, value, bytes);
}

}  // extern "C"
