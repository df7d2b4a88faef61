#include "simt/engine/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#include "simt/engine/asan.h"

#if !defined(__x86_64__)
#error "the fibre switch is written for x86-64"
#endif

// void simt_switch(void** save, void* load): the callee-saved registers of the System V ABI go on the old stack and come
// from the new one. The floating-point control words are the same in all fibres.
extern "C" void simt_switch(void** save, void* load);
asm(R"(
.text
.globl simt_switch
.hidden simt_switch
.type simt_switch, @function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch, .-simt_switch
)");

namespace simt {
namespace {

constexpr int kMaxFibers = 1024;
constexpr size_t kGuardBytes = 4096;
constexpr int kSavedRegisters = 6;

void* scheduler_stack_pointer;
// The scheduler's stack as AddressSanitizer knows it.
const void* scheduler_stack;
size_t scheduler_stack_bytes;

}  // namespace

const StackRange& stack_range() {
  static const StackRange range = [] {
    const size_t bytes = kMaxFibers * (kGuardBytes + kStackBytes);
    void* mapped = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    return StackRange{static_cast<char*>(mapped), bytes};
  }();
  return range;
}

void prepare(Fiber& fiber, int index, void (*entry)()) {
  if (!fiber.stack) {
    fiber.stack = stack_range().base + index * (kGuardBytes + kStackBytes) + kGuardBytes;
    if (mprotect(fiber.stack, kStackBytes, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
  }
  if (fiber.abandoned) asan::unpoison(fiber.stack, kStackBytes);
  fiber.abandoned = false;
  // What simt_switch pops: zeros for the saved registers, then the entry as return address. The entry finds the stack
  // as after a call: 8 bytes off a multiple of 16, with a null return address.
  void** top = reinterpret_cast<void**>(fiber.stack + kStackBytes - 64);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kSavedRegisters; ++i) *--top = nullptr;
  fiber.stack_pointer = top;
}

void resume(Fiber& fiber) {
  void* own = nullptr;
  asan::start_switch(&own, fiber.stack, kStackBytes);
  simt_switch(&scheduler_stack_pointer, fiber.stack_pointer);
  asan::finish_switch(own, nullptr, nullptr);
}

void started() { asan::finish_switch(nullptr, &scheduler_stack, &scheduler_stack_bytes); }

void yield(Fiber& fiber, bool last) {
  asan::start_switch(last ? nullptr : &fiber.asan_stack, scheduler_stack, scheduler_stack_bytes);
  simt_switch(&fiber.stack_pointer, scheduler_stack_pointer);
  asan::finish_switch(fiber.asan_stack, &scheduler_stack, &scheduler_stack_bytes);
}

}  // namespace simt
