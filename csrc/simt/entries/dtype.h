#pragma once
// Names of dtypes in the arguments of entries.
#include <stdexcept>
#include <string>

#include "common/types.h"

namespace simt {

inline longspan::kernels::DType dtype_named(const std::string& name) {
  using longspan::kernels::DType;
  if (name == "bfloat16") return DType::kBFloat16;
  if (name == "float16") return DType::kFloat16;
  if (name == "float32") return DType::kFloat32;
  if (name == "float64") return DType::kFloat64;
  throw std::invalid_argument("dtype is '" + name + "'; allowed: bfloat16, float16, float32, float64");
}

/// NumPy's dtype of an array on its way to Python; bfloat16 travels as its bits.
inline const char* numpy_name(longspan::kernels::DType dtype) {
  using longspan::kernels::DType;
  return dtype == DType::kBFloat16 ? "uint16" : dtype == DType::kFloat16 ? "float16" : "float32";
}

}  // namespace simt
