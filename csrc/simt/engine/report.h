#pragma once
// What a run found wrong.
#include <vector_types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "simt/engine/site.h"

namespace simt {

/// The rules, as tests name them.
namespace rule {
inline constexpr char kRace[] = "race";
inline constexpr char kRaceAcrossBlocks[] = "race-across-blocks";
inline constexpr char kOutOfBounds[] = "out-of-bounds";
inline constexpr char kStalePointer[] = "stale-pointer";
inline constexpr char kHostMemory[] = "host-memory";
inline constexpr char kUninitialised[] = "uninitialised";
inline constexpr char kInFlight[] = "in-flight";
inline constexpr char kMisaligned[] = "misaligned";
inline constexpr char kDivergentBarrier[] = "divergent-barrier";
inline constexpr char kExitBeforeBarrier[] = "exit-before-barrier";
inline constexpr char kDivergentWarp[] = "divergent-warp";
inline constexpr char kExitBeforeWarp[] = "exit-before-warp";
inline constexpr char kLaneNotInMask[] = "lane-not-in-mask";
inline constexpr char kInactiveSource[] = "inactive-source";
inline constexpr char kLaunch[] = "launch";
inline constexpr char kOverflow[] = "integer-overflow";
inline constexpr char kIndex[] = "index";
inline constexpr char kShift[] = "shift";
inline constexpr char kDivision[] = "division";
inline constexpr char kTrap[] = "trap";
inline constexpr char kStack[] = "stack-overflow";
inline constexpr char kAsan[] = "asan";
}  // namespace rule

/// What happens under one rule at one pair of places is one report with a count; details are of the first time.
struct Report {
  const char* rule;
  Site site, other_site;
  const void* kernel_address = nullptr;
  bool in_thread = false;
  uint3 block{}, thread{};
  std::string message;
  uintptr_t address = 0;
  std::string array;  // empty: the address is in no array
  int64_t offset = 0;
  int other_thread = -1;  // index in its block, x fastest
  int64_t count = 1;

  // Looked up when the run ends.
  std::string kernel, file, other_file;
  int line = 0, other_line = 0;
  std::vector<Frame> trace;
};

/// Starts a report about the running thread, for the caller to complete; null when an equal one exists, which is counted.
/// `detail` tells apart what the rule and the places do not.
Report* report(const char* rule, const Site& site, const Site& other = {}, uintptr_t detail = 0);

/// All reports since the last call, with their places and kernels looked up.
std::vector<Report> take_reports();

/// The project's files and lines of many sites, looked up together.
struct Line {
  std::string file;
  int line = 0;
};
std::vector<Line> find_lines(const std::vector<Site>& sites);

}  // namespace simt
