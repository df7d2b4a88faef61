#pragma once
// Between arrays of any library that speaks DLPack or the buffer protocol and the kernels' plain views.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <optional>
#include <string>
#include <vector>

#include "kernels/common/context.h"

namespace longspan::host {

namespace py = pybind11;

/// A borrowed array: data, dtype, shape and strides in elements. Keeps its owner alive.
struct Array {
  py::object owner;
  void* data = nullptr;
  std::string dtype;  // "float32", "float64", "float16", "bfloat16", "int32", "int16", "int8", "int64", "uint8"
  std::vector<int64_t> shape, strides;
  bool read_only = false;
  bool cuda = false;  // in CUDA memory, of device `device`
  int device = 0;

  int64_t numel() const {
    int64_t n = 1;
    for (int64_t s : shape) n *= s;
    return n;
  }
  bool contiguous() const;
  /// Whether no two elements can share memory.
  bool distinct() const;
};

/// A CUDA stream by its DLPack number (1 legacy default, 2 per-thread default, else a cudaStream_t), to use an array on; -1
/// makes its owner order nothing. None: the array must be in CPU memory.
using Stream = std::optional<int64_t>;

/// Borrows `object` through __dlpack__ or the buffer protocol. `name` is used in errors: of what is no plain array, is not
/// in this machine's byte order, not aligned, or has negative strides; an empty array has data that is not null.
Array borrow(const py::handle& object, const std::string& name, Stream stream = {});

/// As borrow, and checks dtype and number of dimensions.
Array borrow(const py::handle& object, const std::string& name, const std::string& dtype, size_t dims, Stream stream = {});

/// Throws py::value_error unless every element can be written, and by itself.
void check_writable(const Array& x, const std::string& name);

/// Whether the object is in CUDA memory, without borrowing it.
bool in_cuda_memory(const py::handle& object);

/// Throws py::value_error unless both are in CPU memory or on one CUDA device.
void check_device(const Array& x, const std::string& name, const Array& like, const std::string& like_name);

kernels::DType dtype_of(const Array& array, const std::string& name);
const char* dtype_name(kernels::DType dtype);

template <int N>
kernels::View<N> view_of(const Array& array, const std::string& name) {
  if (array.shape.size() != N)
    throw py::value_error(name + " has " + std::to_string(array.shape.size()) + " dimensions; it needs " +
                          std::to_string(N));
  if (array.shape[N - 1] > 1 && array.strides[N - 1] != 1)
    throw py::value_error(name + ": the last dimension must be contiguous, its stride is " +
                          std::to_string(array.strides[N - 1]));
  kernels::View<N> out;
  out.data = array.data;
  out.dtype = dtype_of(array, name);
  for (int i = 0; i < N; ++i) out.size[i] = array.shape[i], out.stride[i] = array.strides[i];
  return out;
}

/// A new NumPy array of the dtype with this name; NumPy has no bfloat16, so its bits come as uint16.
py::array new_array(const std::string& dtype, const std::vector<int64_t>& shape);

}  // namespace longspan::host
