// The barriers of a block.
#include <cstring>

#include "simt/device/thread.h"
#include "simt/engine/banks.h"
#include "simt/engine/machine.h"
#include "simt/engine/ready.h"
#include "simt/engine/report.h"
#include "simt/engine/wait.h"

namespace simt {
namespace {

void check_convergence() {
  const Thread* first = nullptr;
  for (int i = 0; i < machine.block.threads; ++i) {
    const Thread& thread = machine.threads[i];
    if (thread.state != ThreadState::kAtBarrier) continue;
    if (!first) first = &thread;
    if (same_place(first->arrival.caller, thread.arrival.caller)) continue;
    Report* made = report(rule::kDivergentBarrier, Site::at(first->arrival.caller), Site::at(thread.arrival.caller));
    if (!made) return;
    made->message = "thread " + std::to_string(first->linear) + " waits at one barrier, thread " +
                    std::to_string(thread.linear) + " of the same block at another";
    made->in_thread = true;
    made->block = machine.block.index;
    made->thread = first->index;
    made->other_thread = thread.linear;
    return;
  }
}

void check_exits(const Thread& waiting) {
  if (machine.block.damaged || machine.block.alive == machine.block.threads) return;
  if (Report* made = report(rule::kExitBeforeBarrier, Site::at(waiting.arrival.caller))) {
    made->message = std::to_string(machine.block.threads - machine.block.alive) + " of " +
                    std::to_string(machine.block.threads) + " threads have returned before a barrier that the others reach";
    made->in_thread = true;
    made->block = machine.block.index;
    made->thread = waiting.index;
  }
}

}  // namespace

void release_barrier_if_complete() {
  Block& block = machine.block;
  if (block.at_barrier == 0 || block.at_barrier != block.alive) return;
  check_convergence();
  int count = 0;
  const Thread* last = nullptr;
  for (int i = 0; i < block.threads; ++i) {
    if (machine.threads[i].state != ThreadState::kAtBarrier) continue;
    last = &machine.threads[i];
    count += last->arrival.predicate != 0;
  }
  check_exits(*last);
  // Before any thread runs on: what comes next is ordered after all that was.
  ++machine.epochs.now;
  for (int warp = 0; warp * kWarpSize < block.threads; ++warp) {
    end_requests(warp);
    if (block.warps[warp].clock.interval) block.warps[warp].clock = {};
  }
  ready.draw_priorities();
  const int waiting = block.at_barrier;
  block.at_barrier = 0;
  for (int i = 0; i < block.threads; ++i) {
    Thread& thread = machine.threads[i];
    if (thread.state != ThreadState::kAtBarrier) continue;
    switch (BarrierKind(thread.arrival.kind)) {
      case BarrierKind::kPlain: break;
      case BarrierKind::kCount: thread.arrival.result = count; break;
      case BarrierKind::kAnd: thread.arrival.result = count == waiting; break;
      case BarrierKind::kOr: thread.arrival.result = count > 0; break;
    }
    make_ready(thread);
  }
  ++machine.statistics.barriers;
}

int block_barrier(BarrierKind kind, int predicate, const Caller& caller) {
  Thread& thread = *machine.current;
  thread.state = ThreadState::kAtBarrier;
  thread.arrival = {caller};
  thread.arrival.kind = uint8_t(kind);
  thread.arrival.predicate = predicate;
  ++machine.block.at_barrier;
  release_barrier_if_complete();
  yield(thread.fiber, false);
  return thread.arrival.result;
}

}  // namespace simt
