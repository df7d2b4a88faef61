#pragma once
// What all that reads codes knows of them: their numbers, bits and places.
#include "common/types.h"

namespace longspan::kernels {

inline constexpr int kMaxSubspaces = 64;
inline constexpr int kMaxCodewords = 256;

/// Codewords [G,M,E,d], contiguous: of G groups of heads (1: all share one codebook), M subspaces of d components, E each.
/// float, or double for double vectors.
struct Codebook {
  const void* data = nullptr;
  int64_t groups = 0, subspaces = 0, codewords = 0, width = 0;
};

/// Bits of a code, and codes of a 32-bit word.
LONGSPAN_HD inline constexpr int code_bits(int64_t codewords) { return codewords <= 16 ? 4 : 8; }
LONGSPAN_HD inline constexpr int64_t code_words(int64_t subspaces, int64_t codewords) {
  return ceil_div(subspaces * code_bits(codewords), 32);
}
LONGSPAN_HD inline int code_at(const int32_t* words, int m, int bits) {
  return int(uint32_t(words[m * bits / 32]) >> (m * bits % 32)) & ((1 << bits) - 1);
}

}  // namespace longspan::kernels
