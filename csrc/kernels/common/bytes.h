#pragma once
// Vectors of bytes, and look-ups in tables of 16 of them. Only for per-ISA sources.
#include "common/vec.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace longspan::kernels::LONGSPAN_ISA_NS {

typedef uint8_t Bytes __attribute__((vector_size(kVecBytes)));
typedef uint16_t Halves __attribute__((vector_size(kVecBytes)));
typedef int16_t Shorts __attribute__((vector_size(kVecBytes)));
inline constexpr int kHalves = kVecBytes / 2;  // 16-bit lanes of a vector

inline Bytes load_bytes(const uint8_t* p) {
  Bytes out;
  std::memcpy(&out, p, sizeof out);
  return out;
}
inline Shorts load_shorts(const int16_t* p) {
  Shorts out;
  std::memcpy(&out, p, sizeof out);
  return out;
}

/// The same 16 bytes in each 16 of a vector.
inline Bytes repeat16(const uint8_t* p) {
#if defined(__AVX512BW__)
  return (Bytes)_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__AVX2__)
  return (Bytes)_mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  static_assert(kVecBytes == 16);
  return load_bytes(p);
#endif
}

/// table[index] byte by byte; the table was made by repeat16, indices are 0 to 15.
inline Bytes lookup(Bytes table, Bytes index) {
#if defined(__AVX512BW__)
  return (Bytes)_mm512_shuffle_epi8((__m512i)table, (__m512i)index);
#elif defined(__AVX2__)
  return (Bytes)_mm256_shuffle_epi8((__m256i)table, (__m256i)index);
#elif defined(__SSSE3__)
  return (Bytes)_mm_shuffle_epi8((__m128i)table, (__m128i)index);
#elif defined(__aarch64__)
  return (Bytes)vqtbl1q_u8((uint8x16_t)table, (uint8x16_t)index);
#else
  return __builtin_shuffle(table, index);
#endif
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
