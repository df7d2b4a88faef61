#pragma once
// Which keys a query keeps of those that it may see: those with the highest integer scores of their codes.
#include <climits>

#include "pq/codebook.h"

namespace longspan::kernels {

/// kMatch: the number of equal codes of query and key (SPT, arXiv 2312.10365). kAdc: the sum over subspaces of the query's
/// product with the key's codeword (asymmetric distance, Jégou et al. 2011), each in 8 bits of the query's own scale.
enum class Scorer : int8_t { kMatch, kAdc };

/// Keys that a row sees only because of their codes: score > threshold, or score = threshold and key >= cut (the newest of
/// equal ones). A row's table has the score of every code of every subspace, as bytes [M][16 or 256]; scores are its sums.
///
///   kMatch   table[m][e] = (e = code of the query)
///   kAdc     v[m][e] = sum_j q[m*d+j] codeword[g,m,e,j]     rounded product by product and sum by sum, in the order of j
///            table[m][e] = floor((v[m][e] - min_e v[m]) * (255 / max_m (max_e v[m] - min_e v[m])) + 1/2)
///
/// For finite vectors the integers are the same everywhere. The scale of scores does not depend on the softmax's.
struct Selection {
  Scorer scorer = Scorer::kMatch;
  Codebook codebook;                     // data for kAdc only
  const int32_t* key_codes = nullptr;    // [B,K,S,W]
  const int32_t* query_codes = nullptr;  // [B,H,T,W], for kMatch
  const void* threshold = nullptr;       // [B,H,T] int8 (kMatch) or int16 (kAdc): kKeepsAll, or kKeepsNone of the type
  const int32_t* cut = nullptr;          // [B,H,T] key numbers
};

inline constexpr int kKeepsAll = -1;
LONGSPAN_HD inline constexpr int keeps_none(Scorer scorer) { return scorer == Scorer::kMatch ? SCHAR_MAX : SHRT_MAX; }

LONGSPAN_HD inline int threshold_at(const Selection& s, int64_t row) {
  return s.scorer == Scorer::kMatch ? static_cast<const int8_t*>(s.threshold)[row]
                                    : static_cast<const int16_t*>(s.threshold)[row];
}

/// Bytes of a row's table.
LONGSPAN_HD inline constexpr int64_t table_bytes(const Codebook& c) { return c.subspaces << code_bits(c.codewords); }

}  // namespace longspan::kernels
