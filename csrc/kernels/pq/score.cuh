#pragma once
// Integer scores by codes on the device: the table of a query, made by one warp, and sums of its bytes.
#include "pq/selection.h"
#include "pq/vectors.cuh"

namespace longspan::kernels {

/// A selection on the device; see selection.h. H and K: query and key heads.
struct DeviceSelection {
  DeviceCodebook book;
  const int32_t *key_codes = nullptr, *query_codes = nullptr, *cut = nullptr;
  const void* threshold = nullptr;
  bool match = true;

  DeviceSelection() = default;
  explicit DeviceSelection(const Selection& s)
      : book(s.codebook),
        key_codes(s.key_codes),
        query_codes(s.query_codes),
        cut(s.cut),
        threshold(s.threshold),
        match(s.scorer == Scorer::kMatch) {}

  SIMT_DEVICE int threshold_at(int64_t row) const {
    return match ? static_cast<const int8_t*>(threshold)[row] : static_cast<const int16_t*>(threshold)[row];
  }
};

/// Bytes of shared memory that one warp needs to make a table: the table, products of an asymmetric one, two numbers a
/// subspace.
inline constexpr int64_t table_scratch(int M, int E, int bits, bool match) {
  return round_up(int64_t(M) << bits, 16) + (match ? 0 : round_up(4 * (int64_t(M) * E + M), 16));
}

/// One query's table by one warp; `memory` has table_scratch bytes, the table comes first. All lanes may read it afterwards.
template <class S>
SIMT_DEVICE void make_table(const DeviceSelection& s, const S* q, int D, int h, int H, const int32_t* codes,
                            unsigned char* memory) {
  const int lane = int(threadIdx.x) & 31, M = s.book.M, E = s.book.E, d = s.book.d, entries = 1 << s.book.bits;
  if (s.match) {
    for (int p = lane; p < M * entries; p += 32)
      memory[p] = (unsigned char)(code_at(codes, p / entries, s.book.bits) == p % entries);
    __syncwarp();
    return;
  }
  float* const products = reinterpret_cast<float*>(memory + round_up(int64_t(M) << s.book.bits, 16));
  float* const lowest = products + M * E;
  const float* codewords = s.book.of_head(h, H);
  for (int p = lane; p < M * E; p += 32) {
    const int m = p / E;
    float sum = 0;
    for (int j = 0; j < d && m * d + j < D; ++j)  // each operation rounds by itself
      sum = __fadd_rn(sum, __fmul_rn(to_float(q[m * d + j]), codewords[p * d + j]));
    products[p] = sum;
  }
  if (!simt::mutant(190)) __syncwarp();
  float range = 0;
  for (int m = lane; m < M; m += 32) {
    float low = products[m * E], high = low;
    for (int e = 1; e < E; ++e) low = fminf(low, products[m * E + e]), high = fmaxf(high, products[m * E + e]);
    lowest[m] = low;
    range = fmaxf(range, __fsub_rn(high, low));
  }
  SIMT_UNROLL
  for (int offset = 16; offset > 0; offset /= 2) range = fmaxf(range, __shfl_xor_sync(~0u, range, offset));
  const float factor = range > 0.f ? __fdiv_rn(255.f, range) : 0.f;
  __syncwarp();
  for (int p = lane; p < M * entries; p += 32) {
    const int m = p / entries, e = p % entries;
    const float x = e < E ? __fadd_rn(__fmul_rn(__fsub_rn(products[m * E + e], lowest[m]), factor), 0.5f) : 0.f;
    memory[p] = (unsigned char)(x > 0.f ? (x < 255.f ? int(x) : 255) : 0);
  }
  if (!simt::mutant(191)) __syncwarp();
}

/// The score of a key from its words of codes.
SIMT_DEVICE int score_of_codes(const DeviceSelection& s, const unsigned char* table, const int32_t* words) {
  const int per_word = 32 / s.book.bits, mask = (1 << s.book.bits) - 1;
  int score = 0;
  for (int w = 0, m = 0; w < s.book.W; ++w) {
    uint32_t word = uint32_t(words[w]);
    for (int i = 0; i < per_word && m < s.book.M; ++i, ++m, word >>= s.book.bits)
      score += table[(m << s.book.bits) + int(word & uint32_t(mask))];
  }
  return score;
}

}  // namespace longspan::kernels
