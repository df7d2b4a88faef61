#pragma once
// The emulated memories: named regions between guard pages in one reserved range of addresses.
#include <cstddef>
#include <cstdint>
#include <string>

namespace simt {

struct Report;
struct Cell;

enum class Space : uint8_t { kGlobal, kDynamicShared, kStaticShared };

/// One array. `base` to `base + bytes` may be accessed; the rest of its pages is red zone, the pages around are guards.
struct Region {
  Space space;
  std::string name;
  char* base;
  size_t bytes;
  char* pages;  // accessible pages
  size_t page_bytes;
  bool stale = false;       // released: its pages are gone, its name stays
  bool tracks_init = true;  // whether unwritten bytes are known
  uint32_t epoch = 0;       // static shared arrays: the launch that last declared it, as Epochs::launch_begin
  Cell* cells = nullptr;    // shadow of `pages`, in the hooks build

  bool shared() const { return space != Space::kGlobal; }
  bool holds(const void* address, size_t size) const {
    const char* p = static_cast<const char*>(address);
    return p >= base && p + size <= base + bytes && !stale;
  }
};

constexpr unsigned char kPoison = 0xFF;  // all ones: NaN in every floating-point format, -1 as an integer
constexpr size_t kMaxDynamicShared = 227 << 10;
constexpr size_t kMaxStaticShared = 48 << 10;

/// Which side of the region's pages its array touches: overruns meet the guard page at once on that side.
enum class Flush : uint8_t { kHigh, kLow };

/// New pages for an array, filled with poison when asked. With `alignment` the base is aligned to that and no more.
Region* allocate(Space space, std::string name, size_t bytes, size_t alignment, Flush flush, bool poison);
/// Gives the pages back; later accesses are reported as stale.
void release(Region* region);
/// Moves the array within its pages (dynamic shared memory between launches).
void place(Region* region, size_t bytes, size_t alignment, Flush flush);

/// The region whose array, red zone or guard pages hold the address; null when none does.
Region* find(const void* address);
/// Whether the address is one that arrays can have.
bool is_device_address(const void* address);
/// The region whose array holds all the bytes, or null.
Region* find_array(const void* address, size_t bytes);

void fill_poison(Region* region);
/// Hides the array's red zones from AddressSanitizer.
void unpoison_red_zones(const Region& region);
/// Reports and repairs overwritten red zones, which shows overruns that stay within a page. Not in the hooks build,
/// where every access is checked.
void check_red_zones(Region* region);

/// Fills the report's address, array and offset.
void describe_address(Report& report, const void* address);
/// "x+128 (of 256 bytes)", or what is known of the address.
std::string address_text(const void* address);

}  // namespace simt
