#pragma once
// Bank conflicts of shared memory: 32 banks of 4 bytes. ldmatrix is counted in all builds; ordinary loads and stores in
// the hooks build, where the accesses that the lanes of a warp make at one place, each for the n-th time since they last
// met, are taken for one instruction.
#include <cstddef>
#include <cstdint>
#include <vector>

#include "simt/engine/site.h"

namespace simt {

struct Thread;

/// The extra passes that one request takes beyond its minimum. `addresses` are null for lanes that take no part.
/// Lanes of 4 bytes and less are served together, of 8 bytes by halves of the warp, of 16 bytes by quarters; equal words
/// are one.
int bank_conflicts(const char* const* addresses, int lanes, size_t bytes);

/// A line and what its requests took.
struct BankLine {
  Site site;
  int64_t requests = 0, extra_passes = 0;
};

void count_request(SiteCode site, int extra_passes);
/// Notes a lane's access to shared memory.
void note_shared_access(const Thread& thread, const void* address, size_t bytes, SiteCode site);
/// Ends the requests of a warp, whose lanes meet.
void end_requests(int warp);
/// All lines since the last call.
std::vector<BankLine> take_bank_lines();

}  // namespace simt
