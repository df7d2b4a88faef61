#pragma once
// The arrays of one kernel call without torch, checked against the first of them.
#include <deque>
#include <string>
#include <vector>

#include "host/array.h"

namespace longspan::host {

/// What a call writes and returns.
struct Output {
  py::object object;
  Array array;
};

/// `first` is the array that decides where the call runs; errors name it.
class Arguments {
 public:
  Arguments(const Array& first, std::string first_name, Stream stream)
      : first_(first), first_name_(std::move(first_name)), stream_(stream) {}

  /// Another array, of this shape and dtype; throws py::value_error that says what was given and what is needed.
  Array input(const py::handle& object, const std::string& name, const std::vector<int64_t>& shape,
              const std::string& dtype) const;
  Array input(const py::handle& object, const std::string& name, const std::vector<int64_t>& shape,
              kernels::DType dtype) const {
    return input(object, name, shape, dtype_name(dtype));
  }
  /// The same with null data for None.
  template <class Type>
  Array optional_input(const py::handle& object, const std::string& name, const std::vector<int64_t>& shape,
                       const Type& dtype) const {
    return object.is_none() ? Array{} : input(object, name, shape, dtype);
  }
  /// An array of the caller to write to, or a new NumPy array; CUDA memory is always the caller's.
  Output output(const py::object& given, const std::string& name, const std::vector<int64_t>& shape,
                const std::string& dtype) const;
  Output output(const py::object& given, const std::string& name, const std::vector<int64_t>& shape,
                kernels::DType dtype) const {
    return output(given, name, shape, dtype_name(dtype));
  }

 private:
  const Array& first_;
  std::string first_name_;
  Stream stream_;
};

/// The arrays of a call on lists of them, kept alive with it. The first added decides where the call runs; errors name it.
class ArrayLists {
 public:
  ArrayLists(std::string first_name, Stream stream) : first_name_(std::move(first_name)), stream_(stream) {}

  /// One more contiguous array beside the first. Throws py::value_error, for a read-only one too if it is written.
  const Array& add(const py::handle& object, const std::string& name, bool written = false);
  /// The same of this shape and dtype.
  const Array& add(const py::handle& object, const std::string& name, const std::vector<int64_t>& shape,
                   const std::string& dtype, bool written = false);
  /// The elements of a vector of this dtype.
  template <class T>
  const T* vector(const py::handle& object, const char* name, const char* dtype, int64_t length) {
    return static_cast<const T*>(add(object, name, {length}, dtype).data);
  }
  const Array& first() const { return kept_.front(); }

 private:
  std::string first_name_;
  Stream stream_;
  std::deque<Array> kept_;
};

/// Throws py::value_error unless the list called `name` has as many entries as the first has.
void check_length(const std::string& name, size_t given, const std::string& first, size_t needed);

/// "name[i]".
inline std::string element_name(const char* name, size_t i) { return name + ("[" + std::to_string(i) + "]"); }

/// The first array of a call on rows: [T, C], the last dimension contiguous.
Array rows_of(const py::handle& object, const std::string& name, Stream stream);

/// The view of an array that may have null data.
inline kernels::View<2> view_or_null(const Array& x, const char* name) {
  return x.data ? view_of<2>(x, name) : kernels::View<2>{};
}

/// Throws py::value_error unless the array is contiguous.
void check_contiguous(const Array& x, const std::string& name);

}  // namespace longspan::host
