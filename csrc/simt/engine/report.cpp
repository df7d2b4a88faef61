#include "simt/engine/report.h"

#include <deque>
#include <unordered_map>

#include "simt/engine/machine.h"

namespace simt {
namespace {

struct Key {
  const char* rule;
  SiteCode site, other;
  uintptr_t detail;
  bool operator==(const Key&) const = default;
};
struct KeyHash {
  size_t operator()(const Key& key) const {
    const uint64_t places = uint64_t(key.site) << 32 | key.other;
    return (places ^ uintptr_t(key.rule) ^ key.detail << 7) * 0x9E3779B97F4A7C15ull;
  }
};

struct Found {
  std::deque<Report> reports;  // addresses stay valid
  std::unordered_map<Key, Report*, KeyHash> by_place;
};

Found& found() {
  static Found all;
  return all;
}

/// The innermost frame that is the project's own and not the emulated device header.
const Frame* own_frame(const std::vector<Frame>& trace) {
  for (const Frame& frame : trace) {
    const bool foreign = frame.file.empty() || frame.file[0] == '/' || frame.file[0] == '?' || frame.line == 0;
    if (!foreign && frame.file.rfind("csrc/simt/device/", 0) != 0 && frame.file != "csrc/kernels/common/simt.h")
      return &frame;
  }
  return trace.empty() ? nullptr : &trace.front();
}

void place(const Site& site, const std::vector<Frame>& trace, std::string& file, int& line) {
  if (site.file) {
    file = project_path(site.file);
    line = site.line;
  } else if (const Frame* frame = own_frame(trace)) {
    file = frame->file;
    line = frame->line;
  }
}

}  // namespace

std::vector<Line> find_lines(const std::vector<Site>& sites) {
  std::vector<const void*> instructions;
  for (const Site& site : sites)
    if (site.instruction) instructions.push_back(site.instruction);
  const auto traces = symbolise(instructions);
  std::vector<Line> lines(sites.size());
  size_t next = 0;
  for (size_t i = 0; i < sites.size(); ++i) {
    const std::vector<Frame> trace = sites[i].instruction ? traces[next++] : std::vector<Frame>{};
    place(sites[i], trace, lines[i].file, lines[i].line);
  }
  return lines;
}

Report* report(const char* rule, const Site& site, const Site& other, uintptr_t detail) {
  Found& all = found();
  const Key key{rule, encode(site), encode(other), detail};
  if (const auto known = all.by_place.find(key); known != all.by_place.end()) {
    ++known->second->count;
    return nullptr;
  }
  Report& made = all.reports.emplace_back();
  made.rule = rule;
  made.site = site;
  made.other_site = other;
  made.kernel_address = machine.launch.kernel;
  if (const Thread* thread = machine.current) {
    made.in_thread = true;
    made.block = machine.block.index;
    made.thread = thread->index;
  }
  all.by_place.emplace(key, &made);
  return &made;
}

std::vector<Report> take_reports() {
  Found& all = found();
  std::vector<Report> reports(all.reports.begin(), all.reports.end());
  all.by_place.clear();
  all.reports.clear();

  std::vector<const void*> instructions;
  for (const Report& each : reports)
    for (const void* instruction : {each.kernel_address, each.site.instruction, each.other_site.instruction})
      if (instruction) instructions.push_back(instruction);
  const auto traces = symbolise(instructions);
  size_t next = 0;
  for (Report& each : reports) {
    if (each.kernel_address)
      if (const auto& trace = traces[next++]; !trace.empty()) each.kernel = trace.back().function;
    if (each.site.instruction) each.trace = traces[next++];
    const std::vector<Frame> other_trace = each.other_site.instruction ? traces[next++] : std::vector<Frame>{};
    place(each.site, each.trace, each.file, each.line);
    place(each.other_site, other_trace, each.other_file, each.other_line);
  }
  return reports;
}

}  // namespace simt
