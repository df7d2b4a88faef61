#include "simt/engine/site.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <unordered_map>

namespace simt {
namespace {

constexpr SiteCode kTableBit = 0x80000000u;
// CMakeLists.txt maps the project's root to this in __FILE__ and in debug information.
constexpr char kRoot[] = "/longspan/";

const char* library_path() {
  Dl_info info{};
  dladdr(__ehdr_start, &info);
  return info.dli_fname;
}

struct PositionTable {
  std::vector<Site> sites;
  std::map<std::pair<const char*, int>, SiteCode> codes;  // file names are literals: the pointer identifies them
};

PositionTable& table() {
  static PositionTable positions;
  return positions;
}

}  // namespace

SiteCode encode(const Site& site) {
  if (site.instruction) return SiteCode(static_cast<const char*>(site.instruction) - __ehdr_start);
  if (!site.file) return 0;
  PositionTable& positions = table();
  const auto [place, added] =
      positions.codes.try_emplace({site.file, site.line}, kTableBit | SiteCode(positions.sites.size()));
  if (added) positions.sites.push_back(site);
  return place->second;
}

Site decode(SiteCode code) {
  if (code == 0) return {};
  if (code & kTableBit) return table().sites[code & ~kTableBit];
  return {nullptr, 0, __ehdr_start + code};
}

std::string project_path(const std::string& file) {
  const size_t length = strlen(kRoot);
  return file.compare(0, length, kRoot) == 0 ? file.substr(length) : file;
}

namespace {

/// Calls addr2line and adds what it says of each instruction.
void look_up(const std::vector<const void*>& instructions, std::unordered_map<const void*, std::vector<Frame>>& traces) {
  std::string command = std::string("LD_PRELOAD= addr2line -a -f -i -C -e '") + library_path() + "'";
  for (const void* instruction : instructions) {
    char text[32];
    snprintf(text, sizeof text, " 0x%zx", size_t(static_cast<const char*>(instruction) - __ehdr_start));
    command += text;
  }
  FILE* pipe = popen((command + " 2>/dev/null").c_str(), "r");
  if (!pipe) return;
  // Per address a line "0x...", then for each level of inlining the function and "file:line (discriminator n)".
  size_t count = 0;
  std::string function;
  bool expects_function = true;
  for (char* line = nullptr; true;) {
    size_t capacity = 0;
    const ssize_t length = getline(&line, &capacity, pipe);
    std::string text(line ? line : "", length > 0 ? size_t(length) - 1 : 0);
    free(line);
    line = nullptr;
    if (length <= 0) break;
    if (text.compare(0, 2, "0x") == 0) {
      ++count;
      expects_function = true;
    } else if (expects_function) {
      function = text;
      expects_function = false;
    } else {
      const size_t colon = text.rfind(':');
      if (count > 0 && count <= instructions.size() && colon != std::string::npos)
        traces[instructions[count - 1]].push_back(
            {function, project_path(text.substr(0, colon)), atoi(text.c_str() + colon + 1)});
      expects_function = true;
    }
  }
  pclose(pipe);
}

}  // namespace

std::vector<std::vector<Frame>> symbolise(const std::vector<const void*>& instructions) {
  static std::unordered_map<const void*, std::vector<Frame>> known;  // a process of its own takes longer than a run
  std::vector<const void*> unknown;
  for (const void* instruction : instructions)
    if (known.try_emplace(instruction).second) unknown.push_back(instruction);
  if (!unknown.empty()) look_up(unknown, known);
  std::vector<std::vector<Frame>> traces;
  for (const void* instruction : instructions) traces.push_back(known[instruction]);
  return traces;
}

}  // namespace simt
