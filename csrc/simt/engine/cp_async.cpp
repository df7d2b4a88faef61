// cp.async: the destination holds poison from the issue until the thread waits for the copy's group.
#include <cstring>

#include "simt/engine/build.h"
#include "simt/engine/machine.h"
#include "simt/engine/report.h"
#include "simt/engine/shadow.h"
#include "simt/engine/touch.h"

namespace simt {
namespace {

constexpr size_t kBytes = 16;

void land(const Thread& thread, const AsyncCopy& copy) {
  if (!find_array(copy.shared, kBytes) || (copy.source_bytes && !find_array(copy.global, size_t(copy.source_bytes)))) return;
  memcpy(copy.shared, copy.global, size_t(copy.source_bytes));
  memset(copy.shared + copy.source_bytes, 0, kBytes - size_t(copy.source_bytes));
  land_copy(copy.shared, kBytes, thread);
}

}  // namespace

void cp_async16(void* shared, const void* global, int source_bytes, const Caller& caller) {
  Thread& thread = *machine.current;
  const Site site = Site::at(caller);
  ++machine.statistics.cp_async;
  const auto* const source = static_cast<const char*>(global);
  if (source_bytes < 0 || source_bytes > int(kBytes)) {
    if (Report* made = report(rule::kOutOfBounds, site))
      made->message = "cp.async with a source size of " + std::to_string(source_bytes) + " bytes; allowed: 0 to 16";
    return;
  }
  if (!check_aligned(shared, kBytes, "cp.async destination", site) ||
      !check_aligned(source, kBytes, "cp.async source", site))
    return;
  if (!check_shared(shared, kBytes, Access::kCopyIssue, "cp.async destination", site)) return;
  if (source_bytes > 0 && !check_global(source, size_t(source_bytes), Access::kRead, "cp.async source", site)) return;
  memset(shared, kPoison, kBytes);
  thread.uncommitted.push_back({static_cast<char*>(shared), source, source_bytes});
}

void cp_async_commit() {
  Thread& thread = *machine.current;
  thread.groups.push_back(std::move(thread.uncommitted));
  thread.uncommitted.clear();
}

void cp_async_wait(int pending) {
  Thread& thread = *machine.current;
  while (int(thread.groups.size()) > pending) {
    for (const AsyncCopy& copy : thread.groups.front()) land(thread, copy);
    thread.groups.pop_front();
  }
}

void finish_copies(Thread& thread) {
  if (thread.groups.empty() && thread.uncommitted.empty()) return;
  cp_async_commit();
  cp_async_wait(0);
  (void)thread;
}

}  // namespace simt
