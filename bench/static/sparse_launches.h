#pragma once
// What launches.cpp calls for the ops of sparse attention and of routed blocks, and what its own calls share with them.
#include <istream>
#include <stdexcept>
#include <string>

#include "common/context.h"
#include "pq/selection.h"

namespace longspan::kernels {

alignas(64) inline char scratch[64];  // never read: nothing runs

inline CudaContext context() {
  return {nullptr, {nullptr, [](void*, int64_t) -> void* { return scratch; }}, {nullptr, [](void*, const GemmArgs&) {}}};
}

inline DType dtype_of(const std::string& name) {
  if (name == "float32") return DType::kFloat32;
  if (name == "bfloat16") return DType::kBFloat16;
  if (name == "float16") return DType::kFloat16;
  throw std::invalid_argument("no dtype " + name);
}

inline View<4> view(DType dtype, int64_t batch, int64_t heads, int64_t rows, int64_t D, bool aligned) {
  const int64_t row = round_up(D, 8) + (aligned ? 0 : 1);
  return {scratch, dtype, {batch, heads, rows, D}, {heads * rows * row, rows * row, row, 1}};
}

/// A selection by asymmetric scores of 128 components, 8 a codeword: one size, so that a kernel has one budget.
inline Selection selection_of_codes() {
  const auto* numbers = reinterpret_cast<const int32_t*>(scratch);
  return {Scorer::kAdc, {scratch, 1, 16, 16, 8}, numbers, nullptr, scratch, numbers};
}

/// Runs one line, false for other ops:
///   pq encode1|encode2|loss|stats <dtype>
///   topl threshold|indices|tables <dtype>
///   list_attention fwd|bwd|transpose <dtype>
///   grouped expand|reduce|weight <dtype> <by rows 0|1>
bool sparse_launch(const std::string& op, std::istream& words);

}  // namespace longspan::kernels
