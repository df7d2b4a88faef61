#pragma once
// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): four random words from a counter and a
// key. A dropout mask made of it is a pure function of (seed, row, column), so it is never stored.
#include "common/types.h"

namespace longspan::kernels {

struct PhiloxWords {
  uint32_t word[4];
};

LONGSPAN_HD inline PhiloxWords philox(uint64_t counter, uint64_t seed) {
  uint32_t x0 = uint32_t(counter), x1 = uint32_t(counter >> 32), x2 = 0, x3 = 0;
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * x0, p1 = uint64_t(0xCD9E8D57u) * x2;
    x0 = uint32_t(p1 >> 32) ^ x1 ^ k0, x1 = uint32_t(p1);
    x2 = uint32_t(p0 >> 32) ^ x3 ^ k1, x3 = uint32_t(p0);
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return {{x0, x1, x2, x3}};
}

/// An element is dropped when its word is below this.
inline uint32_t dropout_threshold(double p) { return uint32_t(p * 4294967296.0); }

/// Word of element (row, column) of a matrix of `columns` columns: word index % 4 of counter index / 4.
LONGSPAN_HD inline uint32_t philox_word(int64_t row, int64_t column, int64_t columns, uint64_t seed) {
  const uint64_t index = uint64_t(row * columns + column);
  return philox(index >> 2, seed).word[index & 3];
}

}  // namespace longspan::kernels
