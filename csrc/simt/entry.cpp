#include "simt/entry.h"

#include <map>
#include <stdexcept>

namespace simt {
namespace {

std::map<std::string, EntryFunction>& entries() {
  static std::map<std::string, EntryFunction> all;
  return all;
}

struct PendingOutput {
  std::string name, dtype;
  Shape shape;
  void* array;
};
std::vector<PendingOutput>& pending() {
  static std::vector<PendingOutput> outputs;
  return outputs;
}

size_t element_count(const Shape& shape) {
  size_t count = 1;
  for (const py::ssize_t length : shape) count *= size_t(length);
  return count;
}

}  // namespace

EntryRegistration::EntryRegistration(const char* name, EntryFunction function) {
  if (!entries().emplace(name, function).second) throw std::logic_error(std::string("two entries are called ") + name);
}

EntryFunction find_entry(const std::string& name) {
  if (const auto found = entries().find(name); found != entries().end()) return found->second;
  std::string known;
  for (const auto& each : entries()) known += (known.empty() ? "" : ", ") + each.first;
  throw std::invalid_argument("no entry is called '" + name + "'; there are: " + known);
}

py::object argument(const py::dict& arguments, const char* name) {
  if (!arguments.contains(name)) throw std::invalid_argument(std::string("the argument '") + name + "' is missing");
  return arguments[name];
}

bool given(const py::dict& arguments, const char* name) {
  return arguments.contains(name) && !py::object(arguments[name]).is_none();
}

Shape shape(const py::dict& arguments, const char* name) {
  const py::array array = argument(arguments, name);
  return {array.shape(), array.shape() + array.ndim()};
}

void* input_bytes(Device& device, const py::dict& arguments, const char* name, size_t element_bytes) {
  const py::object object = argument(arguments, name);
  if (object.is_none()) return nullptr;
  if (!py::isinstance<py::array>(object)) throw std::invalid_argument(std::string("'") + name + "' is not an array");
  const auto array = py::array::ensure(object, py::array::c_style);
  if (size_t(array.itemsize()) != element_bytes)
    throw std::invalid_argument(std::string("'") + name + "' has elements of " + std::to_string(array.itemsize()) +
                                " bytes, the entry reads " + std::to_string(element_bytes));
  return device.upload(name, array.data(), size_t(array.nbytes()));
}

void* output_bytes(Device& device, const char* name, const Shape& shape, const char* dtype) {
  void* array = device.output(name, element_count(shape) * size_t(py::dtype(dtype).itemsize()));
  also_output(array, name, shape, dtype);
  return array;
}

void also_output(void* array, const char* name, const Shape& shape, const char* dtype) {
  pending().push_back({name, dtype, shape, array});
}

Outputs take_outputs(const Device& device) {
  Outputs outputs;
  for (const PendingOutput& each : pending()) {
    py::array array(py::dtype(each.dtype), each.shape);
    device.download(each.array, array.mutable_data(), size_t(array.nbytes()));
    outputs.unwritten[each.name.c_str()] = device.unwritten(each.array, size_t(array.itemsize()));
    outputs.arrays[each.name.c_str()] = array;
    outputs.addresses[each.name.c_str()] = reinterpret_cast<uintptr_t>(each.array);
  }
  pending().clear();
  return outputs;
}

}  // namespace simt
