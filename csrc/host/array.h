#pragma once
// Between arrays of any library that speaks DLPack or the buffer protocol and the kernels' plain views.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "kernels/common/context.h"

namespace longspan::host {

namespace py = pybind11;

/// A borrowed array: data, dtype, shape and strides in elements. Keeps its owner alive.
struct Array {
  py::object owner;
  void* data = nullptr;
  std::string dtype;  // "float32", "float64", "bfloat16", "int32", "int64", "uint8"
  std::vector<int64_t> shape, strides;

  int64_t numel() const {
    int64_t n = 1;
    for (int64_t s : shape) n *= s;
    return n;
  }
  bool contiguous() const;
};

/// Borrows `object` through __dlpack__ (CPU only) or the buffer protocol. `name` is used in errors.
Array borrow(const py::handle& object, const std::string& name);

/// As borrow, and checks dtype and number of dimensions.
Array borrow(const py::handle& object, const std::string& name, const std::string& dtype, size_t dims);

kernels::DType dtype_of(const Array& array, const std::string& name);

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

/// A new NumPy array; NumPy has no bfloat16, so its bits come as uint16.
py::array new_array(kernels::DType dtype, const std::vector<int64_t>& shape);

}  // namespace longspan::host
