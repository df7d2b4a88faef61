#pragma once
// Integer scores of keys by their codes: a table of bytes a query, and codes of 64 keys side by side. Only for per-ISA
// sources.
#include "common/bytes.h"
#include "pq/selection.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {

inline constexpr int kCodeGroup = 64;  // keys whose codes lie together, by subspace

/// The codebook with codewords along the lanes, [G][M][d][wide]: what tables are made from. Codewords are repeated at the
/// end.
template <class T>
struct CodewordLanes {
  const T* data;
  int64_t wide;

  static int64_t lanes(const Codebook& c) { return round_up(c.codewords, kLanes<T>); }
  static int64_t elements(const Codebook& c) { return c.groups * c.subspaces * c.width * lanes(c); }
  /// Writes `elements` numbers to `memory`.
  static CodewordLanes of(const Codebook& c, T* memory) {
    const int64_t wide = lanes(c), d = c.width;
    for (int64_t gm = 0; gm < c.groups * c.subspaces; ++gm)
      for (int64_t j = 0; j < d; ++j)
        for (int64_t e = 0; e < wide; ++e) {
          const int64_t from = e < c.codewords ? e : c.codewords - 1;
          memory[(gm * d + j) * wide + e] = static_cast<const T*>(c.data)[(gm * c.codewords + from) * d + j];
        }
    return {memory, wide};
  }
};

/// Tables of `count` queries of D components, `stride` apart, for the codebook of group g; see selection.h.
template <class S>
void adc_tables(const Codebook& codebook, const CodewordLanes<Compute<S>>& lanes, int64_t g, const S* q, int64_t stride,
                int64_t count, int64_t D, uint8_t* tables);

/// The same from the queries' codes.
inline void match_tables(const Codebook& codebook, const int32_t* codes, int64_t count, uint8_t* tables) {
  const int bits = code_bits(codebook.codewords);
  const int64_t W = code_words(codebook.subspaces, codebook.codewords), bytes = table_bytes(codebook);
  std::memset(tables, 0, count * bytes);
  for (int64_t i = 0; i < count; ++i)
    for (int m = 0; m < codebook.subspaces; ++m) tables[i * bytes + (m << bits) + code_at(codes + i * W, m, bits)] = 1;
}

/// Codes of up to kCodeGroup keys by subspace, [M][kCodeGroup]; missing keys have code 0. Of 4-bit codes, even bytes of a
/// vector are its first keys and odd bytes its last, so that sums of 16 bits come out in order.
inline void spread_codes(const Codebook& codebook, const int32_t* codes, int64_t count, uint8_t* group) {
  const int bits = code_bits(codebook.codewords);
  const int64_t W = code_words(codebook.subspaces, codebook.codewords);
  for (int m = 0; m < codebook.subspaces; ++m)
    for (int i = 0; i < kCodeGroup; ++i) {
      const int in = i % kVecBytes, at = bits == 8 ? i : i - in + 2 * (in % kHalves) + in / kHalves;
      group[m * kCodeGroup + at] = uint8_t(i < count ? code_at(codes + i * W, m, bits) : 0);
    }
}

/// Scores of the keys of a group, by 4-bit codes; M = 0 takes the number of subspaces at run time.
template <int M>
inline void scores_by_lookup(const uint8_t* table, const uint8_t* group, int subspaces, int16_t* scores) {
#pragma GCC unroll 4
  for (int part = 0; part < kCodeGroup; part += kVecBytes) {
    Halves both{}, odd{};
#pragma GCC unroll 16
    for (int m = 0; m < (M ? M : subspaces); ++m) {
      const Halves found = (Halves)lookup(repeat16(table + 16 * m), load_bytes(group + m * kCodeGroup + part));
      both += found;  // of even bytes, and 256 times those of odd ones
      odd += found >> 8;
    }
    const Halves even = both - (odd << 8);
    std::memcpy(scores + part, &even, sizeof even);
    std::memcpy(scores + part + kHalves, &odd, sizeof odd);
  }
}

/// Scores of the kCodeGroup keys of a group, of which missing ones mean nothing.
inline void group_scores(const Codebook& codebook, const uint8_t* table, const uint8_t* group, int16_t* scores) {
  const int M = int(codebook.subspaces);
  if (code_bits(codebook.codewords) == 4) {
    if (M == 8) return scores_by_lookup<8>(table, group, M, scores);
    if (M == 16) return scores_by_lookup<16>(table, group, M, scores);
    return scores_by_lookup<0>(table, group, M, scores);
  }
  for (int i = 0; i < kCodeGroup; ++i) {
    int score = 0;
    for (int m = 0; m < M; ++m) score += table[m * 256 + group[m * kCodeGroup + i]];
    scores[i] = int16_t(score);
  }
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
