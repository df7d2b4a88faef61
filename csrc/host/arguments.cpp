#include "host/arguments.h"

namespace longspan::host {
namespace {

std::string text_of(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (int64_t n : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(n);
  return text + "]";
}

void check_fits(const Array& x, const std::string& name, const std::vector<int64_t>& shape, const std::string& dtype) {
  if (x.shape != shape || x.dtype != dtype)
    throw py::value_error(name + " is " + x.dtype + " " + text_of(x.shape) + "; it must be " + dtype + " " + text_of(shape));
}

}  // namespace

Array Arguments::input(const py::handle& object, const std::string& name, const std::vector<int64_t>& shape,
                       const std::string& dtype) const {
  Array x = borrow(object, name, stream_);
  check_device(x, name, first_, first_name_);
  check_fits(x, name, shape, dtype);
  return x;
}

Output Arguments::output(const py::object& given, const std::string& name, const std::vector<int64_t>& shape,
                         const std::string& dtype) const {
  if (given.is_none() && first_.cuda) throw py::value_error(name + " is None; on CUDA give an array to write to");
  Output out{given.is_none() ? py::object(new_array(dtype, shape)) : given, {}};
  out.array = borrow(out.object, name, stream_);
  if (given.is_none()) out.array.dtype = dtype;  // NumPy has bfloat16 as uint16
  check_writable(out.array, name);
  check_device(out.array, name, first_, first_name_);
  check_fits(out.array, name, shape, dtype);
  return out;
}

const Array& ArrayLists::add(const py::handle& object, const std::string& name, bool written) {
  Array x = borrow(object, name, stream_);
  if (!kept_.empty()) check_device(x, name, kept_.front(), first_name_);
  check_contiguous(x, name);
  if (written) check_writable(x, name);
  return kept_.emplace_back(std::move(x));
}

const Array& ArrayLists::add(const py::handle& object, const std::string& name, const std::vector<int64_t>& shape,
                             const std::string& dtype, bool written) {
  const Array& x = add(object, name, written);
  check_fits(x, name, shape, dtype);
  return x;
}

void check_length(const std::string& name, size_t given, const std::string& first, size_t needed) {
  if (given != needed)
    throw py::value_error(name + " has " + std::to_string(given) + " elements; " + first + " has " + std::to_string(needed));
}

Array rows_of(const py::handle& object, const std::string& name, Stream stream) {
  Array rows = borrow(object, name, stream);
  view_of<2>(rows, name);
  return rows;
}

void check_contiguous(const Array& x, const std::string& name) {
  if (!x.contiguous()) throw py::value_error(name + " must be contiguous");
}

}  // namespace longspan::host
