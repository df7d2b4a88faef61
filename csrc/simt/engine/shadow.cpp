#include "simt/engine/shadow.h"

#include <sys/mman.h>

#include <bit>
#include <cstring>
#include <new>

#include "simt/engine/machine.h"
#include "simt/engine/report.h"

extern "C" char _end[] __attribute__((visibility("hidden")));  // past the library's data, from the linker

namespace simt {
namespace {

const char* refused_begin;
const char* refused_end;

/// One thing that is wrong with an access to a byte.
struct Conflict {
  const char* rule = nullptr;
  const char* what = "";
  int other_thread = -1;
  SiteCode other_site = 0;
};

/// Whether what thread `other` did in `interval` of its warp, since the last barrier, is ordered before now.
bool ordered(const Thread& thread, int other, uint16_t interval) {
  if (other == thread.linear) return true;
  if (other / kWarpSize != thread.warp) return false;
  return machine.block.warps[thread.warp].clock.known[thread.lane][other % kWarpSize] > interval;
}

/// A thread of the record whose access is not ordered before now, or -1. Only for records of this block and epoch.
int unordered_thread(const Record& record, const Thread& thread) {
  if (record.many_warps || record.thread / kWarpSize != thread.warp) return record.thread;
  for (uint32_t lanes = record.lanes; lanes; lanes &= lanes - 1) {
    const int other = thread.warp * kWarpSize + std::countr_zero(lanes);
    if (!ordered(thread, other, record.interval)) return other;
  }
  return -1;
}

/// The conflict of an access now with the accesses of a record.
Conflict against(const Record& record, const Thread& thread, bool global, const char* what) {
  const Epochs& epochs = machine.epochs;
  if (record.epoch < epochs.launch_begin) return {};
  if (record.epoch < epochs.block_begin || record.many_blocks)
    if (global) return {rule::kRaceAcrossBlocks, what, record.thread, record.site};
  if (record.epoch != epochs.now) return {};
  const int other = unordered_thread(record, thread);
  return other < 0 ? Conflict{} : Conflict{rule::kRace, what, other, record.site};
}

bool initialised(const Cell& c, const Region& region) {
  if (!region.shared()) return !region.tracks_init || c.write.written;
  return c.write.epoch >= machine.epochs.block_begin || c.atomic.epoch >= machine.epochs.block_begin;
}

bool in_flight(const Cell& c) { return c.write.in_flight && c.write.epoch >= machine.epochs.block_begin; }

Conflict check(const Cell& c, const Thread& thread, Access access, const Region& region) {
  const bool global = !region.shared();
  if ((access == Access::kRead || access == Access::kAtomic) && !initialised(c, region))
    return {rule::kUninitialised, "to which nothing has been written"};
  if (in_flight(c)) return {rule::kInFlight, "to which a cp.async is in flight, issued", c.write.thread, c.write.site};
  if (const Conflict found = against(c.write, thread, global, "written"); found.rule) return found;
  if (access != Access::kAtomic)
    if (const Conflict found = against(c.atomic, thread, global, "updated atomically"); found.rule) return found;
  if (access != Access::kRead) return against(c.read, thread, global, "read");
  return {};
}

/// Adds an access to a set of unordered ones.
void add(Record& record, const Thread& thread, SiteCode site) {
  const Epochs& epochs = machine.epochs;
  const uint16_t interval = machine.block.warps[thread.warp].clock.interval;
  const uint32_t lane = 1u << thread.lane;
  if (record.epoch < epochs.launch_begin)
    record.many_blocks = 0;
  else if (record.epoch < epochs.block_begin)
    record.many_blocks = 1;
  if (record.epoch != epochs.now) {
    record.many_warps = 0;
    record.lanes = lane;
  } else if (record.thread / kWarpSize != thread.warp) {
    record.many_warps = 1;
  } else if (record.interval != interval && unordered_thread(record, thread) < 0) {
    record.lanes = lane;  // whoever is ordered after this access is ordered after the earlier ones
  } else {
    // Earlier lanes count as if they had come now: where masks are partial, too much may be reported, never too little.
    record.lanes |= lane;
  }
  record.epoch = epochs.now;
  record.interval = interval;
  record.thread = uint16_t(thread.linear);
  record.site = site;
}

/// A write that is ordered after all of the record, or has been reported.
void replace(Record& record, const Thread& thread, SiteCode site) {
  record.epoch = machine.epochs.now;
  record.site = site;
  record.lanes = 1u << thread.lane;
  record.interval = machine.block.warps[thread.warp].clock.interval;
  record.thread = uint16_t(thread.linear);
}

void record(Cell& c, const Thread& thread, Access access, SiteCode site) {
  if (access == Access::kRead) return add(c.read, thread, site);
  c.write.written = 1;
  if (access == Access::kAtomic) return add(c.atomic, thread, site);
  // What is ordered after this write is ordered after the reads and atomics before it.
  c.read.epoch = c.atomic.epoch = 0;
  const bool flies = access == Access::kCopyIssue || in_flight(c);
  replace(c.write, thread, site);
  c.write.in_flight = flies;
}

const char* verb(Access access) {
  switch (access) {
    case Access::kRead: return "read";
    case Access::kWrite: return "write";
    case Access::kAtomic: return "atomic update";
    case Access::kCopyIssue: return "cp.async";
  }
  return "";
}

void report_conflict(const Conflict& conflict, const char* address, size_t bytes, Access access, SiteCode site) {
  Report* made = report(conflict.rule, decode(site), decode(conflict.other_site));
  if (!made) return;
  const std::string size = std::to_string(bytes) + (bytes == 1 ? " byte" : " bytes");
  made->message = std::string(verb(access)) + " of " + size + " at " + address_text(address) + ", " + conflict.what;
  describe_address(*made, address);
  if (conflict.other_thread < 0) return;
  if (conflict.other_thread != machine.current->linear || conflict.rule == rule::kRaceAcrossBlocks)
    made->other_thread = conflict.other_thread;
  made->message += " by thread " + std::to_string(conflict.other_thread);
  if (conflict.rule == rule::kRace) made->message += ", with no barrier between";
  if (conflict.rule == rule::kRaceAcrossBlocks) made->message += " of another block in the same launch";
}

/// An address that is no array: allowed for the thread's own stack, parameters and the library's constants.
bool check_foreign(const char* address, size_t bytes, Access access, SiteCode site) {
  const auto within = [&](const void* base, size_t size) { return size_t(address - static_cast<const char*>(base)) < size; };
  if (within(machine.current->fiber.stack, kStackBytes)) return true;
  if (access == Access::kRead) {
    if (within(machine.launch.call.context, machine.launch.call.context_bytes)) return true;
    if (within(__ehdr_start, size_t(_end - __ehdr_start))) return true;
  }
  const Region* region = find(address);
  const char* broken = rule::kOutOfBounds;
  std::string where = address_text(address);
  if (region && region->stale) {
    broken = rule::kStalePointer;
  } else if (!is_device_address(address)) {
    broken = rule::kHostMemory;
    where = stack_range().contains(address) ? "another thread's local memory" : "host memory, or a wild address";
  }
  refused_begin = address;
  refused_end = address + bytes;
  if (Report* made = report(broken, decode(site))) {
    made->message = std::string(verb(access)) + " of " + std::to_string(bytes) + " bytes at " + where;
    describe_address(*made, address);
  }
  return false;
}

}  // namespace

Cell* make_cells(size_t bytes) {
  void* mapped =
      mmap(nullptr, bytes * sizeof(Cell), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  return static_cast<Cell*>(mapped);
}

void free_cells(Cell* cells, size_t bytes) { munmap(cells, bytes * sizeof(Cell)); }

bool check_access(const void* address, size_t bytes, Access access, SiteCode site) {
  const char* const begin = static_cast<const char*>(address);
  const Thread& thread = *machine.current;
  if (size_t(begin - thread.fiber.stack) < kStackBytes) return true;
  ++machine.statistics.accesses;
  Region* const region = find(address);
  if (!region || !region->holds(address, bytes)) return check_foreign(begin, bytes, access, site);
  // Another kernel's static array is as good as none.
  if (region->space == Space::kStaticShared && region->epoch != machine.epochs.launch_begin)
    return check_foreign(begin, bytes, access, site);
  if (!region->cells) return true;
  Cell* const cells = region->cells + (begin - region->pages);
  bool clean = true;
  Cell before;
  for (size_t i = 0; i < bytes; ++i) {
    Cell& c = cells[i];
    // Bytes that were always accessed together have equal cells.
    if (i > 0 && memcmp(&c, &before, sizeof c) == 0) {
      c = cells[i - 1];
      continue;
    }
    before = c;
    if (clean) {
      const Conflict conflict = check(c, thread, access, *region);
      if (conflict.rule) {
        report_conflict(conflict, begin + i, bytes, access, site);
        clean = false;
      }
    }
    record(c, thread, access, site);
  }
  return true;
}

void land_copy(const void* address, size_t bytes, const Thread& thread) {
  const Region* region = find_array(address, bytes);
  if (!region || !region->cells) return;
  Cell* cells = region->cells + (static_cast<const char*>(address) - region->pages);
  for (size_t i = 0; i < bytes; ++i) {
    cells[i].write.in_flight = 0;
    record(cells[i], thread, Access::kWrite, cells[i].write.site);
  }
}

void mark_written(const void* address, size_t bytes) {
  const Region* region = find_array(address, bytes);
  if (!region || !region->cells) return;
  Cell* cells = region->cells + (static_cast<const char*>(address) - region->pages);
  for (size_t i = 0; i < bytes; ++i) cells[i].write.written = 1;
}

bool refused(const void* address) { return address >= refused_begin && address < refused_end; }

size_t count_unwritten(const Region& region) {
  size_t count = 0;
  if (!region.cells) return 0;
  const Cell* cells = region.cells + (region.base - region.pages);
  for (size_t i = 0; i < region.bytes; ++i) count += !cells[i].write.written;
  return count;
}

}  // namespace simt
