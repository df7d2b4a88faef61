// rule(case, input, n, output_shape, output_dtype) -> output
#include <pybind11/stl.h>

#include <map>
#include <stdexcept>
#include <string>

#include "rules/case.h"
#include "simt/entry.h"

namespace rules {
namespace {

std::map<std::string, Run>& cases() {
  static std::map<std::string, Run> all;
  return all;
}

}  // namespace

Case::Case(const char* name, Run run) { cases()[name] = run; }

}  // namespace rules

namespace simt {
namespace {

py::dict rule(Device& device, const py::dict& arguments) {
  const auto name = value<std::string>(arguments, "case");
  const auto found = rules::cases().find(name);
  if (found == rules::cases().end()) throw std::invalid_argument("no case is called " + name);
  const auto array = argument(arguments, "input").cast<py::array>();
  const void* in = input_bytes(device, arguments, "input", size_t(array.itemsize()));
  const auto dtype = value<std::string>(arguments, "output_dtype");
  void* out = output_bytes(device, "output", value<Shape>(arguments, "output_shape"), dtype.c_str());
  found->second(device, in, out, value<int64_t>(arguments, "n"));
  return {};
}
SIMT_ENTRY(rule);

}  // namespace
}  // namespace simt
