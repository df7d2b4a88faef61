#pragma once
// What both targets ask of the groups of a call.
#include <stdexcept>
#include <string>

#include "magnitude/magnitude.h"

namespace longspan::kernels {

/// Elements of each group; throws std::invalid_argument for what the kernels do not take.
inline std::vector<int64_t> check_groups(const std::vector<MagnitudeTensor>& tensors, int64_t groups) {
  std::vector<int64_t> sizes(groups, 0);
  std::vector<int8_t> halves(groups, 0);  // bit 0: has float16, bit 1: has other dtypes
  for (const MagnitudeTensor& x : tensors) {
    if (x.dtype == DType::kFloat64) throw std::invalid_argument("magnitudes of float64 are not ranked; use float32");
    if (x.group < 0 || x.group >= groups)
      throw std::invalid_argument("group " + std::to_string(x.group) + " is out of range; there are " +
                                  std::to_string(groups));
    sizes[x.group] += x.size;
    halves[x.group] |= x.dtype == DType::kFloat16 ? 1 : 2;
    if (halves[x.group] == 3)
      throw std::invalid_argument("group " + std::to_string(x.group) +
                                  " has float16 and other dtypes, whose magnitudes have no common order of bits");
  }
  return sizes;
}

}  // namespace longspan::kernels
