#include "simt/engine/fault.h"

#include <signal.h>
#include <ucontext.h>

#include <vector>

#include "simt/engine/asan.h"
#include "simt/engine/machine.h"
#include "simt/engine/report.h"
#include "simt/engine/shadow.h"

namespace simt {
namespace {

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
constexpr size_t kSignalStack = 64 << 10;

struct Saved {
  struct sigaction actions[std::size(kSignals)];
  stack_t stack;
};
Saved saved;

/// What the handler leaves for the fibre to report.
struct Fault {
  int signal;
  const void* address;
  const void* instruction;
};
Fault fault;

void report_fault() {
  const Site site{nullptr, 0, fault.instruction};
  if (fault.signal == SIGFPE) {
    if (Report* made = report(rule::kDivision, site)) made->message = "integer division by zero, or overflow of a quotient";
    return;
  }
  if (fault.signal == SIGILL) {
    if (Report* made = report(rule::kTrap, site)) made->message = "the kernel executed a trap";
    return;
  }
  if (refused(fault.address) || asan::reported(fault.address)) return;
  const Region* region = find(fault.address);
  const StackRange& stacks = stack_range();
  const bool stack = stacks.contains(fault.address);
  const char* broken = stack ? rule::kStack : region && region->stale ? rule::kStalePointer : rule::kOutOfBounds;
  if (Report* made = report(broken, site)) {
    made->message = stack ? "the thread's local memory exceeds the emulation's " + std::to_string(kStackBytes) + " bytes"
                          : "access to " + address_text(fault.address);
    describe_address(*made, fault.address);
  }
}

/// Where a fibre continues after a fault, on its own emptied stack.
[[noreturn]] void continue_after_fault() {
  report_fault();
  end_thread();
}

void on_signal(int signal, siginfo_t* info, void* context) {
  auto& registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  if (!machine.current) {
    // Host code: not ours. The instruction runs again, into the handler that was there before.
    for (size_t i = 0; i < std::size(kSignals); ++i)
      if (kSignals[i] == signal) sigaction(signal, &saved.actions[i], nullptr);
    return;
  }
  fault = {signal, info->si_addr, reinterpret_cast<const void*>(registers[REG_RIP])};
  const uintptr_t top = uintptr_t(machine.current->fiber.stack) + kStackBytes - 64;
  registers[REG_RSP] = greg_t(top - 8);  // as after a call
  registers[REG_RIP] = greg_t(reinterpret_cast<uintptr_t>(&continue_after_fault));
}

}  // namespace

FaultHandlers::FaultHandlers() {
  static std::vector<char> memory(kSignalStack);
  stack_t stack{};
  stack.ss_sp = memory.data();
  stack.ss_size = memory.size();
  sigaltstack(&stack, &saved.stack);
  struct sigaction action{};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  for (size_t i = 0; i < std::size(kSignals); ++i) sigaction(kSignals[i], &action, &saved.actions[i]);
}

FaultHandlers::~FaultHandlers() {
  for (size_t i = 0; i < std::size(kSignals); ++i) sigaction(kSignals[i], &saved.actions[i], nullptr);
  sigaltstack(&saved.stack, nullptr);
}

}  // namespace simt
