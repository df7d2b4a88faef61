#pragma once
// The dropout mask on the device: bits from dropout.h, made where they are used.
#include "common/simt.h"
#include "lora/dropout.h"

namespace longspan::kernels {

/// The mask of rows [row, ...) of a matrix of `columns` columns; no mask where seeds is null.
struct Dropout {
  const int64_t* seeds = nullptr;  // one a projection
  uint32_t threshold = 0;
  int64_t row = 0, columns = 0;
};

/// Bit i: whether element (row, column + i) of the masked array is kept, for i < count <= 29. Every word of the generator is
/// named by a constant: an index would put the four into local memory.
SIMT_DEVICE uint32_t kept(const Dropout& dropout, int64_t row, int64_t column, int count, uint64_t seed) {
  const auto index = uint64_t((dropout.row + (simt::mutant(130) ? 0 : row)) * dropout.columns + column);
  const int first = int(index & 3);
  uint32_t bits = 0;
  for (int at = 0; at < first + count; at += 4) {
    const PhiloxWords x = philox_words((index >> 2) + (simt::mutant(131) ? 0 : uint64_t(at / 4)), 0, seed);
    SIMT_UNROLL
    for (int i = 0; i < 4; ++i) bits |= uint32_t(x.word[i] >= dropout.threshold) << (at + i);
  }
  return bits >> first;
}

}  // namespace longspan::kernels
