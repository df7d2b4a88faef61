#include "host/array.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "host/dlpack.h"

namespace longspan::host {
namespace {

std::string dtype_name(const DLDataType& dtype) {
  const std::string bits = std::to_string(dtype.bits);
  switch (dtype.code) {
    case 0: return "int" + bits;
    case 1: return "uint" + bits;
    case 2: return "float" + bits;
    case 4: return "bfloat" + bits;
    default: return "dtype code " + std::to_string(dtype.code);
  }
}

constexpr int32_t kCpu = 1, kCuda = 2;

int32_t device_type(const py::handle& object) {
  return object.attr("__dlpack_device__")().cast<std::pair<int32_t, int32_t>>().first;
}

/// Null stands for an array that is not given, so an empty one, which may have no memory, points here.
alignas(64) char nothing[64];

/// Throws unless elements lie where kernels read them: whole, at addresses of their size, and going forward.
void check_readable(Array& x, const std::string& name, int64_t item) {
  if (x.numel() == 0) {
    if (!x.data) x.data = nothing;
    return;
  }
  if (item > 0 && reinterpret_cast<uintptr_t>(x.data) % uintptr_t(item))
    throw py::value_error(name + " does not begin at a multiple of its " + std::to_string(item) +
                          " bytes an element; give a copy of it");
  for (size_t i = 0; i < x.shape.size(); ++i)
    if (x.shape[i] > 1 && x.strides[i] < 0)
      throw py::value_error(name + " has stride " + std::to_string(x.strides[i]) + " along dimension " + std::to_string(i) +
                            "; strides must not be negative, give a copy of it");
}

Array from_dlpack(const py::handle& object, const std::string& name, Stream stream) {
  py::object capsule;
  try {
    const int32_t type = device_type(object);
    if (type != kCpu && !(type == kCuda && stream))
      throw py::value_error(name + " is on DLPack device type " + std::to_string(type) + "; this kernel takes arrays in " +
                            (stream ? "CPU (1) or CUDA (2) memory" : "CPU memory (device type 1)"));
    const auto dlpack = object.attr("__dlpack__");
    capsule = type == kCuda ? dlpack(py::arg("stream") = *stream) : dlpack();
  } catch (const py::error_already_set& error) {  // a gradient is wanted, or it is no plain array
    throw py::value_error(name + " gives no array: " + error.what());
  }
  auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
  if (!managed) throw py::error_already_set();
  const DLTensor& t = managed->dl_tensor;
  Array out;
  out.cuda = t.device.device_type == kCuda;
  out.device = t.device.device_id;
  if (t.data) out.data = static_cast<char*>(t.data) + t.byte_offset;
  out.dtype = dtype_name(t.dtype);
  out.shape.assign(t.shape, t.shape + t.ndim);
  out.strides.resize(t.ndim);
  int64_t running = 1;
  for (int i = t.ndim - 1; i >= 0; running *= t.shape[i--]) out.strides[i] = t.strides ? t.strides[i] : running;
  out.owner = capsule;  // an unconsumed capsule frees its tensor when it dies
  check_readable(out, name, t.dtype.bits / 8);
  return out;
}

/// The dtype of elements that are one number in this machine's byte order; else what they are.
std::string buffer_dtype(const py::buffer_info& info) {
  std::string format = info.format;
  if (!format.empty() && std::string("@=<").find(format[0]) != std::string::npos) format.erase(0, 1);
  if (format.size() != 1 || info.itemsize < 1) return "of format '" + info.format + "'";
  const std::string bits = std::to_string(info.itemsize * 8);
  if (std::string("fdeg").find(format) != std::string::npos) return "float" + bits;
  if (std::string("bhilq").find(format) != std::string::npos) return "int" + bits;
  if (std::string("BHILQ?").find(format) != std::string::npos) return "uint" + bits;
  return "of format '" + info.format + "'";
}

Array from_buffer(const py::handle& object, const std::string& name) {
  py::buffer_info info = py::reinterpret_borrow<py::buffer>(object).request();
  Array out;
  out.dtype = buffer_dtype(info);
  out.data = info.ptr;
  out.shape.assign(info.shape.begin(), info.shape.end());
  const py::ssize_t item = std::max<py::ssize_t>(1, info.itemsize);
  for (size_t i = 0; i < info.strides.size(); ++i) {
    if (info.shape[i] > 1 && info.strides[i] % item)
      throw py::value_error(name + " has a stride of " + std::to_string(info.strides[i]) + " bytes for elements of " +
                            std::to_string(item) + "; give a copy of it");
    out.strides.push_back(info.strides[i] / item);
  }
  out.owner = py::reinterpret_borrow<py::object>(object);
  out.read_only = info.readonly;
  check_readable(out, name, item);
  return out;
}

}  // namespace

bool Array::contiguous() const {
  int64_t running = 1;
  for (size_t i = shape.size(); i-- > 0; running *= shape[i])
    if (shape[i] > 1 && strides[i] != running) return false;
  return true;
}

bool Array::distinct() const {
  std::vector<std::pair<int64_t, int64_t>> sides;  // stride, size
  for (size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] == 0) return true;
    if (shape[i] > 1) sides.emplace_back(strides[i], shape[i]);
  }
  std::sort(sides.begin(), sides.end());
  int64_t reach = 1;  // elements from the first to behind the last of all smaller strides
  for (const auto& [stride, size] : sides) {
    if (stride < reach) return false;
    reach += stride * (size - 1);
  }
  return true;
}

void check_writable(const Array& x, const std::string& name) {
  if (x.read_only) throw py::value_error(name + " is read-only; give an array that can be written");
  if (!x.distinct()) throw py::value_error(name + " has elements that share memory; give an array that can be written");
}

Array borrow(const py::handle& object, const std::string& name, Stream stream) {
  if (PyObject_CheckBuffer(object.ptr())) return from_buffer(object, name);
  if (py::hasattr(object, "__dlpack__")) return from_dlpack(object, name, stream);
  throw py::type_error(name + " is a " + std::string(py::str(py::type::of(object).attr("__name__"))) +
                       "; give an array that speaks DLPack or the buffer protocol (NumPy, torch, JAX, CuPy)");
}

Array borrow(const py::handle& object, const std::string& name, const std::string& dtype, size_t dims, Stream stream) {
  Array out = borrow(object, name, stream);
  if (out.dtype != dtype || out.shape.size() != dims)
    throw py::value_error(name + " is " + out.dtype + " with " + std::to_string(out.shape.size()) +
                          " dimensions; it must be " + dtype + " with " + std::to_string(dims));
  return out;
}

bool in_cuda_memory(const py::handle& object) {
  return !PyObject_CheckBuffer(object.ptr()) && py::hasattr(object, "__dlpack_device__") && device_type(object) == kCuda;
}

void check_device(const Array& x, const std::string& name, const Array& like, const std::string& like_name) {
  const auto place = [](const Array& a) { return a.cuda ? "on CUDA device " + std::to_string(a.device) : "in CPU memory"; };
  if (x.cuda != like.cuda || x.device != like.device)
    throw py::value_error(name + " is " + place(x) + " and " + like_name + " is " + place(like) + "; they must be together");
}

kernels::DType dtype_of(const Array& array, const std::string& name) {
  if (array.dtype == "float32") return kernels::DType::kFloat32;
  if (array.dtype == "float64" && !array.cuda) return kernels::DType::kFloat64;
  if (array.dtype == "bfloat16") return kernels::DType::kBFloat16;
  if (array.dtype == "float16" && array.cuda) return kernels::DType::kFloat16;
  throw py::value_error(name + " is " + array.dtype +
                        "; allowed: " + (array.cuda ? "float32, float16, bfloat16" : "float32, float64, bfloat16"));
}

const char* dtype_name(kernels::DType dtype) {
  switch (dtype) {
    case kernels::DType::kFloat64: return "float64";
    case kernels::DType::kFloat32: return "float32";
    case kernels::DType::kFloat16: return "float16";
    default: return "bfloat16";
  }
}

py::array new_array(const std::string& dtype, const std::vector<int64_t>& shape) {
  return py::array(py::dtype(dtype == "bfloat16" ? "uint16" : dtype), std::vector<py::ssize_t>(shape.begin(), shape.end()));
}

}  // namespace longspan::host
