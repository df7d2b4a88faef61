// A launch: the limits that a GPU enforces, then every block in an order that the seed shuffles.
#include "simt/device/launch.h"

#include <numeric>

#include "simt/device/thread.h"
#include "simt/engine/fault.h"
#include "simt/engine/machine.h"
#include "simt/engine/ready.h"
#include "simt/engine/recording.h"
#include "simt/engine/report.h"
#include "simt/engine/wait.h"

namespace simt {

Recording recording;

void begin_launch_shared(size_t dynamic_bytes);
void check_global_red_zones();

namespace {

/// What is wrong with a configuration, or an empty string. Limits: CUDA C++ Programming Guide, compute capability 8.0.
std::string refusal(dim3 grid, dim3 block, size_t smem_bytes) {
  const auto shape = [](dim3 d) { return std::to_string(d.x) + " x " + std::to_string(d.y) + " x " + std::to_string(d.z); };
  if (size_t(grid.x) * grid.y * grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    return "a grid of " + shape(grid) + " blocks; allowed: 1 to 2147483647 x 65535 x 65535";
  if (size_t(block.x) * block.y * block.z == 0 || size_t(block.x) * block.y * block.z > kMaxThreads || block.z > 64)
    return "a block of " + shape(block) + " threads; allowed: 1 to 1024 in all, 64 in z";
  if (smem_bytes > kMaxDynamicShared)
    return std::to_string(smem_bytes) + " bytes of dynamic shared memory; allowed: " + std::to_string(kMaxDynamicShared);
  return "";
}

uint3 block_at(uint64_t number, dim3 grid) {
  return {unsigned(number % grid.x), unsigned(number / grid.x % grid.y), unsigned(number / grid.x / grid.y)};
}

}  // namespace

cudaError_t run_grid(const KernelCall& call, dim3 grid, dim3 block, size_t smem_bytes, const Caller& caller) {
  machine.launch = {call.kernel, call, Site::at(caller), grid, block};
  if (const std::string wrong = refusal(grid, block, smem_bytes); !wrong.empty()) {
    if (Report* made = report(rule::kLaunch, machine.launch.site)) made->message = wrong;
    machine.launch = {};
    return cudaErrorInvalidConfiguration;
  }
  if (recording.active)
    recording.steps.emplace_back(
        RecordedLaunch{call.kernel, grid, block, smem_bytes, {call.parameters.begin(), call.parameters.end()}});
  machine.epochs.launch_begin = ++machine.epochs.now;
  begin_launch_shared(smem_bytes);
  // Other orders in each launch, and the same kind of order: ReadyThreads looks at the seed's low bit.
  ready.reseed(machine.seed ? machine.seed + (uint64_t(machine.statistics.launches) << 32) : 0);
  std::vector<uint64_t> order(size_t(grid.x) * grid.y * grid.z);
  std::iota(order.begin(), order.end(), uint64_t(0));
  if (machine.seed)
    for (size_t i = order.size() - 1; i > 0; --i) std::swap(order[i], order[ready.random().next() % (i + 1)]);
  {
    const FaultHandlers handlers;
    for (const uint64_t number : order) run_block(block_at(number, grid));
  }
  // Host code between launches is ordered after this one.
  machine.epochs.launch_begin = ++machine.epochs.now;
  check_global_red_zones();
  ++machine.statistics.launches;
  machine.launch = {};
  return cudaSuccess;
}

std::string error_text(cudaError_t error) {
  return error == cudaSuccess ? "no error"
                              : "error " + std::to_string(int(error)) + ", which the emulation's reports explain";
}

uint3 thread_index() { return machine.current->index; }
uint3 block_index() { return machine.block.index; }
dim3 block_dimensions() { return machine.launch.block; }
dim3 grid_dimensions() { return machine.launch.grid; }
bool mutant(int number) { return machine.mutant == number; }

void trap(const Caller& caller) {
  if (Report* made = report(rule::kTrap, Site::at(caller))) made->message = "the kernel executed a trap";
  end_thread();
}

}  // namespace simt
