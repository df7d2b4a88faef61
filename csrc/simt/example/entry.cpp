// row_sums(values [rows, columns] float32, threads = 128) -> sums [rows] float32
#include "simt/entry.h"

#include "simt/example/example.h"

namespace simt {
namespace {

py::dict row_sums(Device& device, const py::dict& arguments) {
  const Shape size = shape(arguments, "values");
  const auto* values = input<float>(device, arguments, "values");
  auto* sums = output<float>(device, "sums", {size.at(0)}, "float32");
  example::row_sums(values, sums, size.at(0), size.at(1), value_or(arguments, "threads", 128), nullptr);
  return {};
}
SIMT_ENTRY(row_sums);

}  // namespace
}  // namespace simt
