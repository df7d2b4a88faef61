#pragma once
// Fibres: one stack and one set of saved registers per CUDA thread, switched in user space. x86-64.
#include <cstddef>

namespace simt {

struct Fiber {
  void* stack_pointer = nullptr;
  char* stack = nullptr;       // lowest usable address; a guard page lies below
  void* asan_stack = nullptr;  // AddressSanitizer's record of a fibre that does not run
  bool abandoned = false;      // left in the middle: AddressSanitizer still has its frames
};

constexpr size_t kStackBytes = 256 << 10;

/// All stacks lie in one range, so that "is it a stack?" is one comparison.
struct StackRange {
  char* base = nullptr;
  size_t bytes = 0;
  bool contains(const void* address) const { return size_t(static_cast<const char*>(address) - base) < bytes; }
};
const StackRange& stack_range();

/// Gives fibre number `index` its stack and sets it up to call `entry`, which must not return.
void prepare(Fiber& fiber, int index, void (*entry)());
/// The first thing that `entry` calls.
void started();
/// From the scheduler: runs the fibre until it yields.
void resume(Fiber& fiber);
/// From a fibre: back to the scheduler. `last` says that the fibre will not be resumed.
void yield(Fiber& fiber, bool last);

}  // namespace simt
