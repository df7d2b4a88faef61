#pragma once
// Rows of dropout masks, a vector of counters at a time. Only for per-ISA sources.
#include "common/vec.h"
#include "lora/dropout.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {

typedef uint64_t Counters __attribute__((vector_size(kVecBytes)));
inline constexpr int kCounters = kVecBytes / int(sizeof(uint64_t));

/// The words of kCounters counters that follow each other: philox.h in 64-bit lanes of which the low halves count.
inline void philox_words(uint64_t counter, uint64_t seed, uint64_t* pairs) {
  constexpr uint64_t kLow = 0xFFFFFFFFu;
  Counters index, x2{}, x3{};
  for (int i = 0; i < kCounters; ++i) index[i] = counter + uint64_t(i);
  Counters x0 = index & kLow, x1 = index >> 32;
  uint64_t k0 = seed & kLow, k1 = seed >> 32;
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const Counters p0 = x0 * 0xD2511F53u, p1 = x2 * 0xCD9E8D57u;
    x0 = (p1 >> 32) ^ x1 ^ k0, x1 = p1 & kLow;
    x2 = (p0 >> 32) ^ x3 ^ k1, x3 = p0 & kLow;
    k0 = (k0 + 0x9E3779B9u) & kLow, k1 = (k1 + 0xBB67AE85u) & kLow;
  }
  const Counters first = x0 | x1 << 32, second = x2 | x3 << 32;  // little-endian: words 0, 1 and 2, 3 in order
  for (int i = 0; i < kCounters; ++i) pairs[2 * i] = first[i], pairs[2 * i + 1] = second[i];
}

/// Calls `use(first, count, words)` for runs of the columns of one row, in order; words[i] is that of column first + i.
template <class F>
inline void each_run_of_mask(int64_t row, int64_t columns, uint64_t seed, F&& use) {
  constexpr int64_t kWords = 4 * kCounters;
  alignas(64) uint64_t pairs[kWords / 2];
  for (int64_t c = 0; c < columns;) {
    const uint64_t index = uint64_t(row * columns + c);
    philox_words(index >> 2, seed, pairs);
    const int64_t skipped = int64_t(index & 3), run = kWords - skipped < columns - c ? kWords - skipped : columns - c;
    uint32_t words[kWords];
    std::memcpy(words, pairs, sizeof words);
    use(c, run, words + skipped);
    c += run;
  }
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
