#pragma once
// The dropout mask: which word of the generator belongs to an element, and when it drops it.
#include "common/philox.h"

namespace longspan::kernels {

/// An element is dropped when its word is below this.
inline uint32_t dropout_threshold(double p) { return uint32_t(p * 4294967296.0); }

/// Word of element (row, column) of a matrix of `columns` columns: word index % 4 of counter index / 4.
LONGSPAN_HD inline uint32_t philox_word(int64_t row, int64_t column, int64_t columns, uint64_t seed) {
  const uint64_t index = uint64_t(row * columns + column);
  return philox_words(index >> 2, 0, seed).word[index & 3];
}

}  // namespace longspan::kernels
