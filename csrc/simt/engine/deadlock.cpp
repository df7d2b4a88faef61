// Threads that wait for ever: says who waits where, and where those are that they wait for.
#include <bit>
#include <map>

#include "simt/engine/machine.h"
#include "simt/engine/report.h"

namespace simt {
namespace {

std::string hex(uint32_t mask) {
  char text[16];
  snprintf(text, sizeof text, "0x%08x", mask);
  return text;
}

/// Reports one group of lanes that wait at a warp operation for others.
void report_warp(int warp, const Thread& waiting) {
  const Warp& w = machine.block.warps[warp];
  Thread* const threads = &machine.threads[warp * kWarpSize];
  uint32_t here = 0, elsewhere = 0;
  const Thread* other = nullptr;
  for (uint32_t rest = waiting.arrival.mask & w.live; rest; rest &= rest - 1) {
    const int lane = std::countr_zero(rest);
    const Thread& thread = threads[lane];
    const bool with_us = thread.state == ThreadState::kAtWarpOp && thread.arrival.mask == waiting.arrival.mask &&
                         thread.arrival.op == waiting.arrival.op;
    (with_us ? here : elsewhere) |= 1u << lane;
    if (!with_us && !other) other = &thread;
  }
  if (!other) return;
  Report* made = report(rule::kDivergentWarp, Site::at(waiting.arrival.caller), Site::at(other->arrival.caller));
  if (!made) return;
  const char* there =
      other->state == ThreadState::kAtBarrier ? "wait at a barrier of the block" : "wait at another operation";
  made->message = "lanes " + hex(here) + " of warp " + std::to_string(warp) + " wait for ever for lanes " + hex(elsewhere) +
                  ", which " + there + " (mask " + hex(waiting.arrival.mask) + ")";
  made->in_thread = true;
  made->block = machine.block.index;
  made->thread = waiting.index;
  made->other_thread = other->linear;
}

}  // namespace

void report_deadlock() {
  for (int i = 0; i < machine.block.threads; ++i)
    if (machine.threads[i].state == ThreadState::kAtWarpOp) report_warp(machine.threads[i].warp, machine.threads[i]);
}

}  // namespace simt
