#pragma once
// Layouts, codebooks and codes among an entry's arguments.
#include "attention/mask.h"
#include "pq/selection.h"
#include "simt/entry.h"

namespace simt {

inline longspan::kernels::Layout layout_of(Device& device, const py::dict& arguments, const char* name) {
  if (!given(arguments, name)) return {};
  const Shape planes = shape(arguments, name);  // [2 or 3, 1 or B, length]
  const auto* data = input<int32_t>(device, arguments, name);
  const int64_t plane = planes.at(1) * planes.at(2);
  return {data, data + plane, planes[0] == 3 ? data + 2 * plane : nullptr, planes[1] == 1 ? 0 : planes[2]};
}

/// codebook [G,M,E,d]
inline longspan::kernels::Codebook codebook_of(Device& device, const py::dict& arguments) {
  const Shape s = shape(arguments, "codebook");
  return {input<float>(device, arguments, "codebook"), s.at(0), s.at(1), s.at(2), s.at(3)};
}

/// key_codes, and a codebook or query_codes with their subspaces and codewords.
inline longspan::kernels::Selection selection_of(Device& device, const py::dict& arguments) {
  longspan::kernels::Selection out;
  const bool adc = given(arguments, "codebook");
  out.scorer = adc ? longspan::kernels::Scorer::kAdc : longspan::kernels::Scorer::kMatch;
  if (adc) {
    out.codebook = codebook_of(device, arguments);
  } else {
    out.codebook = {nullptr, 1, value<int64_t>(arguments, "subspaces"), value<int64_t>(arguments, "codewords"), 0};
    out.query_codes = input<int32_t>(device, arguments, "query_codes");
  }
  out.key_codes = input<int32_t>(device, arguments, "key_codes");
  return out;
}

}  // namespace simt
