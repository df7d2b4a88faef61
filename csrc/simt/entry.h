#pragma once
// Entries: what Python can run by name. One file a kernel family in entries/ registers them:
//
//   py::dict attention_fwd(Device& device, const py::dict& arguments) {
//     const auto* q = input<__nv_bfloat16>(device, arguments, "q");
//     auto* out = output<__nv_bfloat16>(device, "out", shape(arguments, "q"), "uint16");
//     ... launch ...
//     return {};                      // further results; outputs are downloaded by themselves
//   }
//   SIMT_ENTRY(attention_fwd);
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "simt/engine/device_memory.h"

namespace simt {

namespace py = pybind11;

using EntryFunction = py::dict (*)(Device& device, const py::dict& arguments);
using Shape = std::vector<py::ssize_t>;

struct EntryRegistration {
  EntryRegistration(const char* name, EntryFunction function);
};
#define SIMT_ENTRY(function) static const ::simt::EntryRegistration simt_entry_##function(#function, function)

/// The function, or an exception that lists the names there are.
EntryFunction find_entry(const std::string& name);

/// The argument, or an exception that names it. `given` is false for None as well.
py::object argument(const py::dict& arguments, const char* name);
bool given(const py::dict& arguments, const char* name);

template <class T>
T value(const py::dict& arguments, const char* name) {
  return argument(arguments, name).cast<T>();
}
template <class T>
T value_or(const py::dict& arguments, const char* name, T otherwise) {
  return given(arguments, name) ? value<T>(arguments, name) : otherwise;
}

Shape shape(const py::dict& arguments, const char* name);
/// Uploads an array and checks the size of its elements; null for None.
void* input_bytes(Device& device, const py::dict& arguments, const char* name, size_t element_bytes);
/// A poisoned array that is among the results of the run. `dtype` is NumPy's name; bfloat16 travels as uint16.
void* output_bytes(Device& device, const char* name, const Shape& shape, const char* dtype);
/// Makes an uploaded array a result too: kernels that change their input.
void also_output(void* array, const char* name, const Shape& shape, const char* dtype);

template <class T>
T* input(Device& device, const py::dict& arguments, const char* name) {
  return static_cast<T*>(input_bytes(device, arguments, name, sizeof(T)));
}
template <class T>
T* output(Device& device, const char* name, const Shape& shape, const char* dtype) {
  return static_cast<T*>(output_bytes(device, name, shape, dtype));
}

/// The results registered since the last call by name: the array, its bytes that were never written, its device address.
struct Outputs {
  py::dict arrays, unwritten, addresses;
};
Outputs take_outputs(const Device& device);

}  // namespace simt
