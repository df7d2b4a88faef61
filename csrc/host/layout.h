#pragma once
// Token layouts among the arrays of a call.
#include "host/array.h"
#include "kernels/attention/mask.h"

namespace longspan::host {

/// Borrows an int32 array [2 or 3, 1 or B, length] (document, position, maybe flag) into `keep`; None leaves both empty.
void set_layout(const py::object& object, const char* name, Array& keep, kernels::Layout& layout, Stream stream);

/// Throws py::value_error unless a layout that was given is of B rows (or one) of `length` tokens, beside `like`.
void check_layout(const Array& layout, const char* name, int64_t B, int64_t length, const Array& like,
                  const char* like_name);

}  // namespace longspan::host
