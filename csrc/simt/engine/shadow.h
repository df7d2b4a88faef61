#pragma once
// The byte shadow of the hooks build: who wrote and who read each byte last, and what orders them.
//
// Happens-before: a block barrier orders everything of the block; __syncwarp orders its lanes (WarpClock); the end of a
// launch orders everything. Blocks of one launch are unordered. As in FastTrack (Flanagan and Freund 2009), the last
// write and the reads since then suffice, because an earlier access that was not ordered has been reported. Atomics do
// not order each other, so that they are a set of their own.
#include <cstddef>
#include <cstdint>

#include "simt/engine/site.h"

namespace simt {

struct Region;
struct Thread;

/// The unordered accesses of one kind to a byte: exactly, when they are of one warp, else as flags. A single write is
/// such a set as well. Epochs are numbers of Machine::epochs; 0 is never.
struct Record {
  uint32_t epoch;
  SiteCode site;
  uint32_t lanes;     // of the warp of `thread`
  uint16_t interval;  // WarpClock::interval
  uint16_t thread : 10;
  uint16_t many_warps : 1, many_blocks : 1;  // others of this epoch, or of earlier blocks of the launch
  uint16_t written : 1, in_flight : 1;       // of the byte, kept in the record of writes
};

struct Cell {
  Record write, atomic, read;
};

enum class Access : uint8_t { kRead, kWrite, kAtomic, kCopyIssue };

Cell* make_cells(size_t bytes);
void free_cells(Cell* cells, size_t bytes);

/// Checks and records an access of the running thread. Returns false when the bytes are not an accessible array.
bool check_access(const void* address, size_t bytes, Access access, SiteCode site);
/// A waited-for copy: its bytes become a write of the thread at this moment.
void land_copy(const void* address, size_t bytes, const Thread& thread);
/// Marks bytes as written by the host.
void mark_written(const void* address, size_t bytes);
/// Whether the last call of check_access refused this address: a fault that follows is the same finding.
bool refused(const void* address);
/// How many of the region's bytes were never written.
size_t count_unwritten(const Region& region);

}  // namespace simt
