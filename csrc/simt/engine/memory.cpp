#include "simt/engine/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <vector>

#include "simt/engine/asan.h"
#include "simt/engine/build.h"
#include "simt/engine/machine.h"
#include "simt/engine/report.h"
#include "simt/engine/shadow.h"

namespace simt {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kArenaBytes = size_t(1) << 42;
// Guards on each side are as long as the array, so that a wrong row or tile does not meet another array, between these.
constexpr size_t kMinGuard = size_t(1) << 20, kMaxGuard = size_t(1) << 30;
// Red zone bytes that are looked at on each side of an array: more than a page is only beside dynamic shared memory.
constexpr size_t kRedZone = 1024;

size_t round_up(size_t value, size_t step) { return (value + step - 1) / step * step; }

/// Reserved addresses, handed out once each: a pointer to a released array never means another.
struct Arena {
  char* base;
  size_t used = 0;
  uint32_t* region_of_page;  // index + 1; reserved too, touched where used
  std::vector<std::unique_ptr<Region>> regions;

  Arena() {
    base = reserve(kArenaBytes, PROT_NONE);
    region_of_page = reinterpret_cast<uint32_t*>(reserve(kArenaBytes / kPage * sizeof(uint32_t), PROT_READ | PROT_WRITE));
  }
  static char* reserve(size_t bytes, int protection) {
    void* mapped = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    return static_cast<char*>(mapped);
  }
  Region* at(const void* address) const {
    const size_t offset = static_cast<const char*>(address) - base;
    if (offset >= used) return nullptr;
    const uint32_t index = region_of_page[offset / kPage];
    return index ? regions[index - 1].get() : nullptr;
  }
};

Arena& arena() {
  static Arena all;
  return all;
}

/// What AddressSanitizer sees beside the array. Never the array itself: it may be terabytes of untouched addresses.
void poison_red_zones(const Region& r) {
  asan::poison(r.pages, size_t(r.base - r.pages));
  asan::poison(r.base + r.bytes, size_t(r.pages + r.page_bytes - (r.base + r.bytes)));
}

/// The array's red zones: [low, base) and [base + bytes, high).
struct RedZones {
  char *low, *high;
  explicit RedZones(const Region& r)
      : low(std::max(r.pages, r.base - kRedZone)), high(std::min(r.pages + r.page_bytes, r.base + r.bytes + kRedZone)) {}
};

}  // namespace

void unpoison_red_zones(const Region& r) {
  asan::unpoison(r.pages, size_t(r.base - r.pages));
  asan::unpoison(r.base + r.bytes, size_t(r.pages + r.page_bytes - (r.base + r.bytes)));
}

Region* allocate(Space space, std::string name, size_t bytes, size_t alignment, Flush flush, bool poison) {
  Arena& all = arena();
  const size_t page_bytes = round_up(std::max<size_t>(bytes + 2 * alignment, 1), kPage);
  const size_t guard_bytes = std::clamp(page_bytes, kMinGuard, kMaxGuard);
  const size_t whole = page_bytes + 2 * guard_bytes;
  if (all.used + whole > kArenaBytes) throw std::length_error("the emulation has used up its addresses; start it again");
  char* first = all.base + all.used;
  all.used += whole;

  auto region = std::make_unique<Region>(Region{space, std::move(name), nullptr, 0, first + guard_bytes, page_bytes});
  if (mprotect(region->pages, page_bytes, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
  if (poison) memset(region->pages, kPoison, page_bytes);
  if (kBuild == Build::kHooks) region->cells = make_cells(page_bytes);
  all.regions.push_back(std::move(region));
  std::fill_n(all.region_of_page + (first - all.base) / kPage, whole / kPage, uint32_t(all.regions.size()));
  Region* made = all.regions.back().get();
  place(made, bytes, alignment, flush);
  return made;
}

void place(Region* region, size_t bytes, size_t alignment, Flush flush) {
  const uintptr_t first = uintptr_t(region->pages), end = first + region->page_bytes;
  uintptr_t base = flush == Flush::kLow ? first : (end - bytes) / alignment * alignment;
  // A static array gets the alignment of its type and no more: a compiler promises nothing else.
  if (region->space == Space::kStaticShared && base % (2 * alignment) == 0)
    base += flush == Flush::kLow ? alignment : -alignment;
  if (region->base) unpoison_red_zones(*region);
  region->base = reinterpret_cast<char*>(base);
  region->bytes = bytes;
  poison_red_zones(*region);
}

void release(Region* region) {
  region->stale = true;
  unpoison_red_zones(*region);
  // A fresh mapping returns the memory and keeps the addresses reserved.
  mmap(region->pages, region->page_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  if (region->cells) free_cells(region->cells, region->page_bytes);
  region->cells = nullptr;
}

Region* find(const void* address) { return arena().at(address); }

bool is_device_address(const void* address) {
  return size_t(static_cast<const char*>(address) - arena().base) < kArenaBytes;
}

Region* find_array(const void* address, size_t bytes) {
  Region* region = arena().at(address);
  return region && region->holds(address, bytes) ? region : nullptr;
}

void fill_poison(Region* region) { memset(region->base, kPoison, region->bytes); }

void check_red_zones(Region* region) {
  if (kBuild != Build::kPlain) return;
  const RedZones zones(*region);
  char* const end = region->base + region->bytes;
  for (auto [from, to] : {std::pair{zones.low, region->base}, std::pair{end, zones.high}}) {
    char* const bad = std::find_if(from, to, [](char c) { return static_cast<unsigned char>(c) != kPoison; });
    if (bad == to) continue;
    if (Report* made = report(rule::kOutOfBounds, machine.launch.site, {}, uintptr_t(region))) {
      made->message = "after the launch: " + address_text(bad) + " has been written; the hooks build names the line";
      describe_address(*made, bad);
    }
    std::fill(from, to, char(kPoison));
  }
}

void describe_address(Report& report, const void* address) {
  report.address = uintptr_t(address);
  if (const Region* region = find(address)) {
    report.array = region->name;
    report.offset = static_cast<const char*>(address) - region->base;
  }
}

std::string address_text(const void* address) {
  const Region* region = find(address);
  if (!region) return "an address in no array";
  const int64_t offset = static_cast<const char*>(address) - region->base;
  const std::string where = region->name + (offset < 0 ? "" : "+") + std::to_string(offset);
  return where + (region->stale ? " (released)" : " (of " + std::to_string(region->bytes) + " bytes)");
}

}  // namespace simt
