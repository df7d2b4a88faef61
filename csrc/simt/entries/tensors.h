#pragma once
// Lists of tensors among an entry's arguments: arrays name0, name1, ..., each with `skip` elements before its first one, so
// that tensors may start off 16 bytes; "<name>_dtypes" has a letter a tensor: f float32, b bfloat16, h float16.
#include "common/context.h"
#include "common/types.h"
#include "simt/entries/dtype.h"
#include "simt/entry.h"

namespace simt {

inline longspan::kernels::CudaContext scratch_context(Device& device) {
  return {nullptr,
          {&device, [](void* self, int64_t bytes) { return static_cast<Device*>(self)->scratch("scratch", size_t(bytes)); }},
          {}};
}

class TensorList {
 public:
  TensorList(Device& device, const py::dict& arguments) : device_(device), arguments_(arguments) {
    if (given(arguments, "skip")) skip_ = value<std::vector<int64_t>>(arguments, "skip");
  }

  longspan::kernels::DType dtype(const std::string& name, size_t i) const {
    using longspan::kernels::DType;
    const std::string key = name + "_dtypes", letters = value<std::string>(arguments_, key.c_str());
    return letters.at(i) == 'f' ? DType::kFloat32 : letters.at(i) == 'b' ? DType::kBFloat16 : DType::kFloat16;
  }
  int64_t skip(size_t i) const { return i < skip_.size() ? skip_[i] : 0; }
  int64_t size(const std::string& name, size_t i) const {
    return shape(arguments_, (name + std::to_string(i)).c_str()).at(0) - skip(i);
  }

  /// The first element, null where the array is not given; `written`: it is among the results.
  void* data(const std::string& name, size_t i, longspan::kernels::DType dtype, bool written) const {
    const std::string key = name + std::to_string(i);
    if (!given(arguments_, key.c_str())) return nullptr;
    const int64_t bytes = longspan::kernels::element_size(dtype);
    void* array = input_bytes(device_, arguments_, key.c_str(), size_t(bytes));
    if (written) also_output(array, key.c_str(), shape(arguments_, key.c_str()), numpy_name(dtype));
    return static_cast<char*>(array) + skip(i) * bytes;
  }

 private:
  Device& device_;
  const py::dict& arguments_;
  std::vector<int64_t> skip_;
};

}  // namespace simt
