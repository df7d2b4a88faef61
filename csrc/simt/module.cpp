// The Python module of a build: run(entry, arguments, seed, mutant, record).
#include <pybind11/stl.h>

#include <algorithm>
#include <map>

#include "simt/engine/asan.h"
#include "simt/engine/banks.h"
#include "simt/engine/machine.h"
#include "simt/engine/recording.h"
#include "simt/engine/report.h"
#include "simt/entries/dtype.h"
#include "simt/entry.h"

namespace simt {
namespace {

py::dict to_dict(const Report& report) {
  py::dict d;
  const auto triple = [](uint3 v) { return py::make_tuple(v.x, v.y, v.z); };
  d["rule"] = report.rule;
  d["message"] = report.message;
  d["kernel"] = report.kernel;
  d["file"] = report.file;
  d["line"] = report.line;
  d["other_file"] = report.other_file;
  d["other_line"] = report.other_line;
  d["block"] = report.in_thread ? py::object(triple(report.block)) : py::none();
  d["thread"] = report.in_thread ? py::object(triple(report.thread)) : py::none();
  d["other_thread"] = report.other_thread < 0 ? py::object(py::none()) : py::int_(report.other_thread);
  d["address"] = report.address;
  d["array"] = report.array;
  d["offset"] = report.offset;
  d["count"] = report.count;
  py::list trace;
  for (const Frame& frame : report.trace)
    trace.append(frame.function + " at " + frame.file + ":" + std::to_string(frame.line));
  d["trace"] = trace;
  return d;
}

py::dict to_dict(const Statistics& statistics) {
  py::dict d;
  d["launches"] = statistics.launches;
  d["blocks"] = statistics.blocks;
  d["threads"] = statistics.threads;
  d["barriers"] = statistics.barriers;
  d["warp_ops"] = statistics.warp_ops;
  d["mma"] = statistics.mma;
  d["ldmatrix"] = statistics.ldmatrix;
  d["ldmatrix_conflicts"] = statistics.ldmatrix_conflicts;
  d["cp_async"] = statistics.cp_async;
  d["accesses"] = statistics.accesses;
  d["shared_requests"] = statistics.shared_requests;
  d["shared_conflicts"] = statistics.shared_conflicts;
  return d;
}

/// Lines whose requests took more passes than they need: (file, line, requests, extra passes), worst first.
py::list conflict_lines() {
  std::map<std::pair<std::string, int>, std::pair<int64_t, int64_t>> merged;  // instances of one line are one
  std::vector<BankLine> found = take_bank_lines();
  std::erase_if(found, [](const BankLine& line) { return line.extra_passes == 0; });
  std::vector<Site> sites;
  for (const BankLine& line : found) sites.push_back(line.site);
  const std::vector<Line> lines = find_lines(sites);
  for (size_t i = 0; i < found.size(); ++i) {
    auto& [requests, extra] = merged[{lines[i].file, lines[i].line}];
    requests += found[i].requests;
    extra += found[i].extra_passes;
  }
  std::vector<py::tuple> rows;
  for (const auto& [place, counts] : merged)
    rows.push_back(py::make_tuple(place.first, place.second, counts.first, counts.second));
  std::sort(rows.begin(), rows.end(),
            [](const py::tuple& a, const py::tuple& b) { return b[3].cast<int64_t>() < a[3].cast<int64_t>(); });
  return py::cast(rows);
}

py::dict to_dict(const longspan::kernels::GemmArgs& product) {
  const auto address = [](const void* p) { return reinterpret_cast<uintptr_t>(p); };
  py::dict d;
  d["transpose_a"] = product.transpose_a, d["transpose_b"] = product.transpose_b;
  d["m"] = product.m, d["n"] = product.n, d["k"] = product.k;
  d["a"] = address(product.a), d["lda"] = product.lda, d["dtype_a"] = numpy_name(product.dtype_a);
  d["b"] = address(product.b), d["ldb"] = product.ldb, d["dtype_b"] = numpy_name(product.dtype_b);
  d["c"] = address(product.c), d["ldc"] = product.ldc, d["dtype_c"] = numpy_name(product.dtype_c);
  d["beta"] = product.beta;
  return d;
}

/// Steps: launches as (kernel's C++ name, grid, block, bytes of shared memory, parameters), products as their arguments.
/// Arrays: (name, address, bytes, contents).
py::dict to_dict(const Recording& record, const py::dict& output_addresses) {
  std::vector<const void*> kernels;
  for (const auto& step : record.steps)
    if (const auto* launch = std::get_if<RecordedLaunch>(&step)) kernels.push_back(launch->kernel);
  const std::vector<std::vector<Frame>> traces = symbolise(kernels);
  const auto triple = [](dim3 v) { return py::make_tuple(v.x, v.y, v.z); };
  py::list steps, arrays;
  size_t next = 0;
  for (const auto& step : record.steps) {
    const auto* launch = std::get_if<RecordedLaunch>(&step);
    if (!launch) {
      steps.append(to_dict(std::get<longspan::kernels::GemmArgs>(step)));
      continue;
    }
    const std::vector<Frame>& trace = traces[next++];
    py::list parameters;
    for (const std::string& bytes : launch->parameters) parameters.append(py::bytes(bytes));
    steps.append(py::make_tuple(trace.empty() ? "" : trace.back().function, triple(launch->grid), triple(launch->block),
                                launch->smem_bytes, parameters));
  }
  for (const RecordedArray& array : record.arrays)
    arrays.append(
        py::make_tuple(array.name, reinterpret_cast<uintptr_t>(array.address), array.bytes, py::bytes(array.contents)));
  py::dict d;
  d["steps"] = steps;
  d["arrays"] = arrays;
  d["outputs"] = output_addresses;
  return d;
}

py::dict run(const std::string& name, const py::dict& arguments, uint64_t seed, int mutant, bool record) {
  recording = {.active = record, .steps = {}, .arrays = {}};
  asan::install();
  take_reports();
  take_bank_lines();
  machine.statistics = {};
  machine.seed = seed;
  machine.mutant = mutant;
  py::dict result;
  std::exception_ptr failure;
  {
    Device device;
    py::dict further;
    try {
      further = find_entry(name)(device, arguments);
    } catch (const std::exception& error) {
      result["error"] = error.what();
      failure = std::current_exception();
    }
    const Outputs outputs = take_outputs(device);
    for (const auto& item : further) outputs.arrays[item.first] = item.second;
    result["outputs"] = outputs.arrays;
    result["unwritten"] = outputs.unwritten;
    result["recording"] = record ? py::object(to_dict(recording, outputs.addresses)) : py::none();
  }
  const std::vector<Report> found = take_reports();
  // A launch that was refused makes both: then the report says more.
  if (failure && found.empty()) std::rethrow_exception(failure);
  py::list reports;
  for (const Report& report : found) reports.append(to_dict(report));
  result["reports"] = reports;
  result["conflicts"] = conflict_lines();
  result["statistics"] = to_dict(machine.statistics);
  return result;
}

void bind(py::module_& m) {
  m.doc() = "CUDA kernels of this project, run and checked on the CPU";
  m.def("run", &run, py::arg("name"), py::arg("arguments"), py::arg("seed") = 0, py::arg("mutant") = 0,
        py::arg("record") = false);
}

}  // namespace
}  // namespace simt

// One object file serves all libraries; each is imported by its own name.
PYBIND11_MODULE(_simt_plain, m) { simt::bind(m); }
PYBIND11_MODULE(_simt_hooks, m) { simt::bind(m); }
PYBIND11_MODULE(_simt_asan, m) { simt::bind(m); }
PYBIND11_MODULE(_rules_plain, m) { simt::bind(m); }
PYBIND11_MODULE(_rules_hooks, m) { simt::bind(m); }
PYBIND11_MODULE(_rules_asan, m) { simt::bind(m); }
