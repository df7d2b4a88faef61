// Warp operations: every lane of the mask comes to the same operation, then all go on.
#include "simt/device/warp.h"

#include <bit>

#include "simt/engine/banks.h"
#include "simt/engine/machine.h"
#include "simt/engine/report.h"
#include "simt/engine/tensor_core.h"
#include "simt/engine/wait.h"

namespace simt {
namespace {

struct Shuffle {
  uint64_t bits, result;
  int source;
};
struct Vote {
  bool predicate;
  uint32_t result;
};
struct Match {
  uint64_t bits;
  uint32_t result;
};
struct Reduce {
  uint32_t value;
  Reduction reduction;
  uint32_t result;
};

/// Calls `body(lane, payload)` for each lane that takes part.
template <class Payload, class Body>
void for_lanes(void* const* lanes, Body&& body) {
  for (int lane = 0; lane < kWarpSize; ++lane)
    if (lanes[lane]) body(lane, *static_cast<Payload*>(lanes[lane]));
}

std::string lane_list(uint32_t mask) {
  char text[16];
  snprintf(text, sizeof text, "0x%08x", mask);
  return std::string(std::popcount(mask) == 1 ? "lane " + std::to_string(std::countr_zero(mask))
                                              : "lanes " + std::string(text));
}

/// A report about a lane that need not be the one that runs.
Report* lane_report(const char* broken, const Thread& thread, const Site& other = {}) {
  Report* made = report(broken, Site::at(thread.arrival.caller), other);
  if (!made) return nullptr;
  made->in_thread = true;
  made->block = machine.block.index;
  made->thread = thread.index;
  return made;
}

Thread* warp_threads(int warp) { return &machine.threads[warp * kWarpSize]; }

void run_shuffle(void* const* lanes, const Thread* threads) {
  for_lanes<Shuffle>(lanes, [&](int lane, Shuffle& own) {
    const int source = own.source & (kWarpSize - 1);
    own.result = ~uint64_t(0);
    if (lanes[source]) {
      own.result = static_cast<const Shuffle*>(lanes[source])->bits;
    } else if (Report* made = lane_report(rule::kInactiveSource, threads[lane])) {
      made->message = "lane " + std::to_string(lane) + " reads from lane " + std::to_string(source) +
                      ", which takes no part in the shuffle";
    }
  });
}

void run_vote(void* const* lanes) {
  uint32_t result = 0;
  for_lanes<Vote>(lanes, [&](int lane, const Vote& own) { result |= uint32_t(own.predicate) << lane; });
  for_lanes<Vote>(lanes, [&](int, Vote& own) { own.result = result; });
}

void run_match(void* const* lanes) {
  for_lanes<Match>(lanes, [&](int, Match& own) {
    own.result = 0;
    for_lanes<Match>(lanes, [&](int lane, const Match& other) { own.result |= uint32_t(other.bits == own.bits) << lane; });
  });
}

uint32_t combine(Reduction reduction, uint32_t a, uint32_t b) {
  switch (reduction) {
    case Reduction::kAdd: return a + b;
    case Reduction::kMinSigned: return int32_t(b) < int32_t(a) ? b : a;
    case Reduction::kMaxSigned: return int32_t(a) < int32_t(b) ? b : a;
    case Reduction::kMinUnsigned: return b < a ? b : a;
    case Reduction::kMaxUnsigned: return a < b ? b : a;
    case Reduction::kAnd: return a & b;
    case Reduction::kOr: return a | b;
    case Reduction::kXor: return a ^ b;
  }
  return 0;
}

void run_reduce(void* const* lanes) {
  bool first = true;
  uint32_t result = 0;
  for_lanes<Reduce>(lanes, [&](int, const Reduce& own) {
    result = first ? own.value : combine(own.reduction, result, own.value);
    first = false;
  });
  for_lanes<Reduce>(lanes, [&](int, Reduce& own) { own.result = result; });
}

/// What the lanes of `mask` did so far is ordered before what they do next.
void order_lanes(WarpClock& clock, uint32_t mask) {
  const uint16_t now = ++clock.interval;
  uint16_t known[kWarpSize] = {};
  for (uint32_t rest = mask; rest; rest &= rest - 1)
    for (int other = 0; other < kWarpSize; ++other) {
      const uint16_t theirs = clock.known[std::countr_zero(rest)][other];
      if (known[other] < theirs) known[other] = theirs;
    }
  for (uint32_t rest = mask; rest; rest &= rest - 1) known[std::countr_zero(rest)] = now;
  for (uint32_t rest = mask; rest; rest &= rest - 1) memcpy(clock.known[std::countr_zero(rest)], known, sizeof known);
}

void check_lanes(int warp, uint32_t mask, uint32_t lanes, const Thread& first) {
  Thread* const threads = warp_threads(warp);
  for (uint32_t rest = lanes; rest; rest &= rest - 1) {
    const Thread& thread = threads[std::countr_zero(rest)];
    if (same_place(thread.arrival.caller, first.arrival.caller)) continue;
    if (Report* made = lane_report(rule::kDivergentWarp, first, Site::at(thread.arrival.caller))) {
      made->message = "lane " + std::to_string(first.lane) + " and lane " + std::to_string(thread.lane) +
                      " of one warp meet at different operations";
      made->other_thread = thread.linear;
    }
    break;
  }
  const Warp& w = machine.block.warps[warp];
  if (machine.block.damaged) return;
  const uint32_t returned = mask & w.exists & ~w.live;
  if (returned)
    if (Report* made = lane_report(rule::kExitBeforeWarp, first))
      made->message = "the mask names " + lane_list(returned) + " that returned before";
  const bool whole_warp = first.arrival.op == WarpOp::kMma || first.arrival.op == WarpOp::kLdmatrix;
  if (whole_warp && lanes != ~0u && !returned)
    if (Report* made = lane_report(rule::kDivergentWarp, first))
      made->message = "needs all 32 lanes of the warp, which has " + lane_list(lanes);
}

void run(WarpOp op, void* const* lanes, int warp, uint32_t mask, const Thread& first) {
  switch (op) {
    case WarpOp::kSync: return order_lanes(machine.block.warps[warp].clock, mask);
    case WarpOp::kShuffle: return run_shuffle(lanes, warp_threads(warp));
    case WarpOp::kBallot: return run_vote(lanes);
    case WarpOp::kMatch: return run_match(lanes);
    case WarpOp::kReduce: return run_reduce(lanes);
    case WarpOp::kMma: return run_mma(lanes);
    case WarpOp::kLdmatrix: return run_ldmatrix(lanes, first.arrival.caller);
  }
}

/// Runs the operation of `thread` when all lanes of its mask that are left wait at the same kind of operation.
void complete_if_all_here(const Thread& thread) {
  const Arrival arrival = thread.arrival;
  Warp& warp = machine.block.warps[thread.warp];
  Thread* const threads = warp_threads(thread.warp);
  const uint32_t lanes = arrival.mask & warp.live;
  if ((warp.waiting & lanes) != lanes) return;
  void* payloads[kWarpSize] = {};
  for (uint32_t rest = lanes; rest; rest &= rest - 1) {
    const int lane = std::countr_zero(rest);
    if (threads[lane].arrival.mask != arrival.mask || threads[lane].arrival.op != arrival.op) return;
    payloads[lane] = threads[lane].arrival.payload;
  }
  const Thread& first = threads[std::countr_zero(lanes)];
  check_lanes(thread.warp, arrival.mask, lanes, first);
  run(arrival.op, payloads, thread.warp, lanes, first);
  warp.waiting &= ~lanes;
  if (lanes == warp.live) end_requests(thread.warp);
  for (uint32_t rest = lanes; rest; rest &= rest - 1) make_ready(threads[std::countr_zero(rest)]);
  ++machine.statistics.warp_ops;
}

/// Waits at an operation. The payload is in the caller's frame: whoever comes last fills in all results.
void meet(WarpOp op, uint32_t mask, void* payload, const Caller& caller) {
  Thread& thread = *machine.current;
  thread.arrival = {caller};
  thread.arrival.op = op;
  thread.arrival.mask = mask;
  thread.arrival.payload = payload;
  const uint32_t lane = 1u << thread.lane;
  if (!(mask & lane)) {
    if (Report* made = report(rule::kLaneNotInMask, Site::at(caller)))
      made->message = "lane " + std::to_string(thread.lane) + " is not in its own mask, " + lane_list(mask);
    return;  // with its payload as it is: the others do not wait for this lane
  }
  thread.state = ThreadState::kAtWarpOp;
  machine.block.warps[thread.warp].waiting |= lane;
  complete_if_all_here(thread);
  yield(thread.fiber, false);
}

}  // namespace

void complete_warp_ops(int warp) {
  Thread* const threads = warp_threads(warp);
  for (uint32_t rest = machine.block.warps[warp].waiting; rest; rest &= rest - 1) {
    const Thread& thread = threads[std::countr_zero(rest)];
    if (thread.state == ThreadState::kAtWarpOp) complete_if_all_here(thread);
  }
}

int lane_index() { return machine.current->lane; }

void warp_sync(uint32_t mask, const Caller& caller) {
  char none;
  meet(WarpOp::kSync, mask, &none, caller);
}

uint64_t warp_shuffle(uint32_t mask, uint64_t bits, int source, const Caller& caller) {
  Shuffle own{bits, ~uint64_t(0), source};
  meet(WarpOp::kShuffle, mask, &own, caller);
  return own.result;
}

uint32_t warp_ballot(uint32_t mask, bool predicate, const Caller& caller) {
  Vote own{predicate, 0};
  meet(WarpOp::kBallot, mask, &own, caller);
  return own.result;
}

uint32_t warp_match(uint32_t mask, uint64_t bits, const Caller& caller) {
  Match own{bits, 0};
  meet(WarpOp::kMatch, mask, &own, caller);
  return own.result;
}

uint32_t warp_reduce(uint32_t mask, uint32_t value, Reduction reduction, const Caller& caller) {
  Reduce own{value, reduction, 0};
  meet(WarpOp::kReduce, mask, &own, caller);
  return own.result;
}

void mma_m16n8k16(float* d, const uint32_t* a, const uint32_t* b, MmaType type, const Caller& caller) {
  MmaLane own{d, a, b, type};
  meet(WarpOp::kMma, ~0u, &own, caller);
}

void ldmatrix_x4(uint32_t* registers, const void* row, bool transposed, const Caller& caller) {
  LdmatrixLane own{registers, row, transposed};
  meet(WarpOp::kLdmatrix, ~0u, &own, caller);
}

}  // namespace simt
