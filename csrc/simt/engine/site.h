#pragma once
// Places in the source: a position given by the caller, or an instruction address that is looked up when the run ends.
#include <cstdint>
#include <source_location>
#include <string>
#include <vector>

namespace simt {

struct Site {
  const char* file = nullptr;
  int line = 0;
  const void* instruction = nullptr;

  static Site at(const std::source_location& caller) { return {caller.file_name(), int(caller.line()), nullptr}; }
  /// The call that returns to `address`.
  static Site call(const void* address) { return {nullptr, 0, static_cast<const char*>(address) - 1}; }
  bool known() const { return file || instruction; }
};

/// A site in 32 bits, for shadow cells: an offset into the code of this library, or an entry of a table of positions.
/// 0 is no site.
using SiteCode = uint32_t;
SiteCode encode(const Site& site);
Site decode(SiteCode code);

/// The first byte of this library in memory, from the linker.
extern "C" const char __ehdr_start[] __attribute__((visibility("hidden")));
/// encode(Site::call(return_address)), for every access of the hooks build.
inline SiteCode encode_call(const void* return_address) {
  return SiteCode(static_cast<const char*>(return_address) - 1 - __ehdr_start);
}

/// One level of inlining; innermost first in a trace.
struct Frame {
  std::string function, file;
  int line;
};

/// Looks up many instruction addresses of this library at once, by binutils' addr2line.
std::vector<std::vector<Frame>> symbolise(const std::vector<const void*>& instructions);

/// The path without the prefix that the build puts in front of the project's files.
std::string project_path(const std::string& file);

}  // namespace simt
