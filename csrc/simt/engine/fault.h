#pragma once
// Signals that a kernel's bad access raises: they become a report and the end of that thread, not of the process.

namespace simt {

/// Handles SIGSEGV, SIGBUS, SIGFPE and SIGILL while it lives, then puts back what was there.
class FaultHandlers {
 public:
  FaultHandlers();
  ~FaultHandlers();
  FaultHandlers(const FaultHandlers&) = delete;
};

}  // namespace simt
