#pragma once
// The state of the emulated device: one launch at a time, one block at a time, one thread at a time.
#include <vector_types.h>

#include <array>
#include <cstdint>
#include <deque>
#include <vector>

#include "simt/device/launch.h"
#include "simt/engine/fiber.h"
#include "simt/engine/memory.h"
#include "simt/engine/site.h"

namespace simt {

constexpr int kWarpSize = 32;
constexpr int kMaxThreads = 1024;
constexpr int kMaxWarps = kMaxThreads / kWarpSize;

enum class WarpOp : uint8_t { kSync, kShuffle, kBallot, kMatch, kReduce, kMma, kLdmatrix };

/// What a waiting thread waits for. For barriers `kind` and `predicate` are set, for warp operations the rest.
struct Arrival {
  std::source_location caller;
  uint8_t kind = 0;
  int predicate = 0, result = 0;
  WarpOp op{};
  uint32_t mask = 0;
  void* payload = nullptr;
};

/// One cp.async that has been issued and not waited for.
struct AsyncCopy {
  char* shared;
  const char* global;
  int source_bytes;
};

enum class ThreadState : uint8_t { kReady, kAtBarrier, kAtWarpOp, kDone };

struct Thread {
  Fiber fiber;
  uint3 index{};
  int linear = 0, warp = 0, lane = 0;
  ThreadState state = ThreadState::kDone;
  Arrival arrival;
  std::vector<AsyncCopy> uncommitted;
  std::deque<std::vector<AsyncCopy>> groups;
};

/// Which memory accesses of its lanes are ordered by __syncwarp, since the last barrier of the block.
struct WarpClock {
  uint16_t interval;  // counts the __syncwarp of any lanes
  // known[i][j]: what lane j did in earlier intervals is ordered before lane i's next access.
  uint16_t known[kWarpSize][kWarpSize];
};

struct Warp {
  uint32_t live = 0;     // lanes that have not returned
  uint32_t exists = 0;   // lanes that the block has
  uint32_t waiting = 0;  // lanes at a warp operation
  WarpClock clock;
};

struct Block {
  uint3 index{};
  int threads = 0, alive = 0, at_barrier = 0;
  bool damaged = false;  // a thread was ended by a fault: what the others miss is no finding of its own
  std::array<Warp, kMaxWarps> warps;
};

struct Launch {
  const void* kernel = nullptr;
  KernelCall call{};
  Site site;
  dim3 grid, block;
};

/// Barriers of all blocks of all launches, numbered; blocks and launches are ranges of these numbers.
struct Epochs {
  uint32_t now = 1, block_begin = 1, launch_begin = 1;
};

/// Counts of a run.
struct Statistics {
  int64_t launches = 0, blocks = 0, threads = 0, barriers = 0, warp_ops = 0, mma = 0, ldmatrix = 0, ldmatrix_conflicts = 0;
  int64_t cp_async = 0, accesses = 0, shared_requests = 0, shared_conflicts = 0;
};

struct Machine {
  uint64_t seed = 0;
  int mutant = 0;
  Launch launch;
  Block block;
  Thread* current = nullptr;  // null while host code runs
  std::array<Thread, kMaxThreads> threads;
  Region* dynamic = nullptr;
  Epochs epochs;
  Statistics statistics;
};

extern Machine machine;

/// Splitmix64 (Steele, Lea and Flood 2014).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15ull;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    return z ^ z >> 31;
  }
  uint32_t below(uint32_t bound) { return uint32_t((next() >> 32) * bound >> 32); }

 private:
  uint64_t state_;
};

// scheduler.cpp
void run_block(uint3 index);
void make_ready(Thread& thread);
/// Ends the running thread where it is, as one that does not come back; used after a fault.
[[noreturn]] void end_thread();

// barrier.cpp
void release_barrier_if_complete();
// warp.cpp
void complete_warp_ops(int warp);
// deadlock.cpp
void report_deadlock();
// cp_async.cpp
void finish_copies(Thread& thread);

// shared.cpp
void begin_block_shared();
void end_block_shared();

}  // namespace simt
