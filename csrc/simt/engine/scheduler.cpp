// Runs the threads of one block as fibres until all have returned or none can go on.
#include "simt/engine/banks.h"
#include "simt/engine/machine.h"
#include "simt/engine/ready.h"

namespace simt {

Machine machine;
ReadyThreads ready(0);

namespace {

[[noreturn]] void leave() {
  Thread& thread = *machine.current;
  thread.state = ThreadState::kDone;
  --machine.block.alive;
  machine.block.warps[thread.warp].live &= ~(1u << thread.lane);
  // Others may have waited for this thread alone.
  release_barrier_if_complete();
  complete_warp_ops(thread.warp);
  yield(thread.fiber, true);
  __builtin_unreachable();
}

void thread_main() {
  started();
  machine.launch.call.run(machine.launch.call.context);
  finish_copies(*machine.current);
  leave();
}

void begin(Thread& thread, int linear) {
  const dim3& size = machine.launch.block;
  const unsigned i = unsigned(linear);
  thread.linear = linear;
  thread.warp = linear / kWarpSize;
  thread.lane = linear % kWarpSize;
  thread.index = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
  thread.uncommitted.clear();
  thread.groups.clear();
  prepare(thread.fiber, linear, thread_main);
  make_ready(thread);
}

}  // namespace

void make_ready(Thread& thread) {
  thread.state = ThreadState::kReady;
  ready.add(thread.linear);
}

void end_thread() {
  machine.block.damaged = true;
  machine.current->fiber.abandoned = true;
  leave();
}

void run_block(uint3 index) {
  Block& block = machine.block;
  const dim3& size = machine.launch.block;
  block.index = index;
  block.threads = block.alive = int(size.x * size.y * size.z);
  block.at_barrier = 0;
  block.damaged = false;
  for (int warp = 0; warp * kWarpSize < block.threads; ++warp) {
    const int lanes = std::min(kWarpSize, block.threads - warp * kWarpSize);
    Warp& w = block.warps[warp];
    w.exists = w.live = ~0u >> (kWarpSize - lanes);
    w.waiting = 0;
    w.clock = {};
  }
  machine.epochs.block_begin = ++machine.epochs.now;
  begin_block_shared();
  ready.clear();
  ready.draw_priorities();
  for (int i = 0; i < block.threads; ++i) begin(machine.threads[i], i);

  while (!ready.empty()) {
    machine.current = &machine.threads[ready.take()];
    resume(machine.current->fiber);
    machine.current = nullptr;
  }
  if (block.alive > 0) {
    if (!block.damaged) report_deadlock();
    for (int i = 0; i < block.threads; ++i)
      if (machine.threads[i].state != ThreadState::kDone) machine.threads[i].fiber.abandoned = true;
  }
  for (int warp = 0; warp * kWarpSize < block.threads; ++warp) end_requests(warp);
  end_block_shared();
  ++machine.statistics.blocks;
  machine.statistics.threads += block.threads;
}

}  // namespace simt
