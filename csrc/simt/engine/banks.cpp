#include "simt/engine/banks.h"

#include <algorithm>
#include <array>
#include <map>
#include <unordered_map>

#include "simt/engine/machine.h"

namespace simt {
namespace {

constexpr int kBanks = 32, kBankBytes = 4;

/// The accesses of a warp's lanes that are taken for one instruction.
struct Request {
  const char* addresses[kWarpSize] = {};
  size_t bytes = 0;
};

struct WarpRequests {
  std::unordered_map<SiteCode, std::array<uint32_t, kWarpSize>> times;  // how often each lane was at a place
  std::unordered_map<uint64_t, Request> requests;                       // by place and time

  void clear() {
    times.clear();
    requests.clear();
  }
};
std::array<WarpRequests, kMaxWarps> warps;
std::unordered_map<SiteCode, BankLine> lines;

int passes(const char* const* addresses, int lanes, size_t bytes) {
  // Distinct words of each bank: at most one a lane and word of its access.
  uintptr_t words[kBanks][kWarpSize];
  int used[kBanks] = {}, most = 0;
  for (int lane = 0; lane < lanes; ++lane) {
    if (!addresses[lane]) continue;
    const uintptr_t first = uintptr_t(addresses[lane]) / kBankBytes,
                    last = (uintptr_t(addresses[lane]) + bytes - 1) / kBankBytes;
    for (uintptr_t word = first; word <= last; ++word) {
      const int bank = int(word % kBanks);
      uintptr_t* const end = words[bank] + used[bank];
      if (std::find(words[bank], end, word) != end || used[bank] == kWarpSize) continue;
      *end = word;
      most = std::max(most, ++used[bank]);
    }
  }
  return most;
}

}  // namespace

int bank_conflicts(const char* const* addresses, int lanes, size_t bytes) {
  const int together = bytes <= 4 ? 32 : bytes <= 8 ? 16 : 8;
  int extra = 0;
  for (int first = 0; first < lanes; first += together)
    extra += std::max(0, passes(addresses + first, std::min(together, lanes - first), bytes) - 1);
  return extra;
}

void count_request(SiteCode site, int extra_passes) {
  BankLine& line = lines[site];
  ++line.requests;
  line.extra_passes += extra_passes;
}

void note_shared_access(const Thread& thread, const void* address, size_t bytes, SiteCode site) {
  WarpRequests& warp = warps[thread.warp];
  const uint32_t time = warp.times[site][thread.lane]++;
  Request& request = warp.requests[uint64_t(site) << 32 | time];
  request.addresses[thread.lane] = static_cast<const char*>(address);
  request.bytes = bytes;
}

void end_requests(int warp) {
  for (const auto& [place, request] : warps[warp].requests) {
    const int extra = bank_conflicts(request.addresses, kWarpSize, request.bytes);
    count_request(SiteCode(place >> 32), extra);
    ++machine.statistics.shared_requests;
    machine.statistics.shared_conflicts += extra;
  }
  warps[warp].clear();
}

std::vector<BankLine> take_bank_lines() {
  std::vector<BankLine> all;
  for (const auto& [code, line] : lines) all.push_back({decode(code), line.requests, line.extra_passes});
  lines.clear();
  return all;
}

}  // namespace simt
