#pragma once
// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): four random words from a counter and a
// key. What is made of it is a pure function of the two, so it is never stored.
#include "common/types.h"

namespace longspan::kernels {

struct PhiloxWords {
  uint32_t word[4];
};

// Multipliers of the two products of a round, and what a round adds to the two halves of the key.
inline constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;
inline constexpr uint32_t kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;
inline constexpr int kPhiloxRounds = 10;

/// The four words of a counter of 128 bits, its lowest word first.
LONGSPAN_HD inline PhiloxWords philox(uint32_t x0, uint32_t x1, uint32_t x2, uint32_t x3, uint64_t key) {
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t p0 = uint64_t(kPhiloxM0) * x0, p1 = uint64_t(kPhiloxM1) * x2;
    x0 = uint32_t(p1 >> 32) ^ x1 ^ k0, x1 = uint32_t(p1);
    x2 = uint32_t(p0 >> 32) ^ x3 ^ k1, x3 = uint32_t(p0);
    k0 += kPhiloxW0, k1 += kPhiloxW1;
  }
  return {{x0, x1, x2, x3}};
}

/// The same of a counter (low, high) whose halves have 64 bits.
LONGSPAN_HD inline PhiloxWords philox_words(uint64_t low, uint64_t high, uint64_t key) {
  return philox(uint32_t(low), uint32_t(low >> 32), uint32_t(high), uint32_t(high >> 32), key);
}

}  // namespace longspan::kernels
