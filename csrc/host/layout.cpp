#include "host/layout.h"

namespace longspan::host {

void set_layout(const py::object& object, const char* name, Array& keep, kernels::Layout& layout, Stream stream) {
  if (object.is_none()) return;
  keep = borrow(object, name, "int32", 3, stream);
  if (!keep.contiguous() || keep.shape[0] < 2 || keep.shape[0] > 3)
    throw py::value_error(std::string(name) +
                          " must be a contiguous int32 array [2 or 3, 1 or B, length]: doc, pos and maybe flag");
  const auto* data = static_cast<const int32_t*>(keep.data);
  const int64_t plane = keep.shape[1] * keep.shape[2];
  layout = {data, data + plane, keep.shape[0] == 3 ? data + 2 * plane : nullptr, keep.shape[1] == 1 ? 0 : keep.shape[2]};
}

void check_layout(const Array& layout, const char* name, int64_t B, int64_t length, const Array& like,
                  const char* like_name) {
  if (!layout.data) return;
  check_device(layout, name, like, like_name);
  if ((layout.shape[1] != 1 && layout.shape[1] != B) || layout.shape[2] != length)
    throw py::value_error(std::string(name) + " is for " + std::to_string(layout.shape[2]) + " tokens; there are " +
                          std::to_string(length));
}

}  // namespace longspan::host
