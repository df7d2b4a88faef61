#pragma once
// AddressSanitizer's interface where the process runs under it, and nothing elsewhere: the engine is compiled once for
// all builds. The engine itself is not instrumented; kernels are.
#include <cstddef>

namespace simt::asan {

bool active();
void poison(const void* address, size_t bytes);
void unpoison(const void* address, size_t bytes);
/// Around a stack switch: `save` null says that the current stack will not be used again.
void start_switch(void** save, const void* bottom, size_t bytes);
void finish_switch(void* saved, const void** old_bottom, size_t* old_bytes);
/// Turns each of AddressSanitizer's errors into a report.
void install();
/// Whether the last error was about this address: what follows in the signal handler is the same access.
bool reported(const void* address);

}  // namespace simt::asan
