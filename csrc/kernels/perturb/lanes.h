#pragma once
// Noise a vector at a time. Only for per-ISA sources.
#include "common/vec.h"
#include "perturb/noise.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// The forms with a mask of ones: those without one make gcc 12 warn of its own header.
namespace longspan::kernels::LONGSPAN_ISA_NS {

typedef uint32_t Words __attribute__((vector_size(kVecBytes)));
typedef uint64_t Wide __attribute__((vector_size(kVecBytes)));
inline constexpr int kCounters = kLanes<float>;  // of one run of the generator

/// The arithmetic of noise.h on vectors.
struct VectorArithmetic {
  using F = Vec<float>;
  using U = Words;
  static F mul(F a, F b) { return a * b; }
  static F add(F a, F b) { return a + b; }
  static F splat(float x) { return F{} + x; }
  static F select(U mask, F a, F b) { return (Mask<float>)mask ? a : b; }
  static F from_signed(U x) { return __builtin_convertvector((Mask<float>)x, F); }
  static U bits(F x) { return (U)x; }
  static F from_bits(U x) { return (F)x; }
  static U sign_mask(U x) { return (U)((Mask<float>)x >> 31); }
  static F sqrt(F x) {
#if defined(__AVX512F__)
    return (F)_mm512_maskz_sqrt_ps(0xFFFF, (__m512)x);
#elif defined(__AVX__)
    return (F)_mm256_sqrt_ps((__m256)x);
#elif defined(__x86_64__)
    return (F)_mm_sqrt_ps((__m128)x);
#elif defined(__aarch64__)
    return (F)vsqrtq_f32((float32x4_t)x);
#else
    for (int i = 0; i < kLanes<float>; ++i) x[i] = __builtin_sqrtf(x[i]);
    return x;
#endif
  }
};

/// Products of the low halves of 64-bit lanes with a word.
inline Wide multiply_low(Wide a, uint32_t b) {
#if defined(__AVX512F__)
  return (Wide)_mm512_maskz_mul_epu32(0xFF, (__m512i)a, _mm512_set1_epi64(int64_t(b)));
#elif defined(__AVX2__)
  return (Wide)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(int64_t(b)));
#elif defined(__x86_64__)
  return (Wide)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(int64_t(b)));
#elif defined(__aarch64__)
  return (Wide)vmull_u32(vmovn_u64((uint64x2_t)a), vdup_n_u32(b));
#else
  return (a & 0xFFFFFFFFu) * b;
#endif
}

/// Counters first, first + 1, ...: word[j][i] is word j of counter i.
inline void philox_lanes(uint64_t first, uint32_t stream, uint64_t key, Words (&word)[4]) {
  // Two sets of 64-bit lanes, even and odd counters, of which the low halves count: a product fills a lane.
  Wide even{};
  for (int i = 0; i < kCounters / 2; ++i) even[i] = first + uint64_t(2 * i);
  Wide x[2][4] = {{even}, {even + 1}};
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
  for (auto& set : x) set[1] = set[0] >> 32, set[2] = Wide{} + stream;
#pragma GCC unroll 10
  for (int round = 0; round < kPhiloxRounds; ++round) {
#pragma GCC unroll 2
    for (auto& set : x) {
      const Wide p0 = multiply_low(set[0], kPhiloxM0), p1 = multiply_low(set[2], kPhiloxM1);
      set[0] = (p1 >> 32) ^ set[1] ^ (Wide{} + k0), set[1] = p1;
      set[2] = (p0 >> 32) ^ set[3] ^ (Wide{} + k1), set[3] = p0;
    }
    k0 += kPhiloxW0, k1 += kPhiloxW1;
  }
  for (int j = 0; j < 4; ++j) word[j] = (Words)((x[0][j] & 0xFFFFFFFFu) | x[1][j] << 32);
}

/// to[4 i + j] = lane i of v_j.
inline void store_interleaved(float* to, Vec<float> v0, Vec<float> v1, Vec<float> v2, Vec<float> v3) {
#if defined(__AVX512F__)
  // 4 x 4 within each 16 bytes, whose part p of row k belongs to lane 4 p + k.
  const __m512d a = _mm512_castps_pd(_mm512_maskz_unpacklo_ps(0xFFFF, (__m512)v0, (__m512)v1));
  const __m512d b = _mm512_castps_pd(_mm512_maskz_unpackhi_ps(0xFFFF, (__m512)v0, (__m512)v1));
  const __m512d c = _mm512_castps_pd(_mm512_maskz_unpacklo_ps(0xFFFF, (__m512)v2, (__m512)v3));
  const __m512d d = _mm512_castps_pd(_mm512_maskz_unpackhi_ps(0xFFFF, (__m512)v2, (__m512)v3));
  const __m512d row[4] = {_mm512_maskz_unpacklo_pd(0xFF, a, c), _mm512_maskz_unpackhi_pd(0xFF, a, c),
                          _mm512_maskz_unpacklo_pd(0xFF, b, d), _mm512_maskz_unpackhi_pd(0xFF, b, d)};
  for (int k = 0; k < 4; ++k) {
    const __m512 r = _mm512_castpd_ps(row[k]);
    _mm_storeu_ps(to + 4 * k, _mm512_maskz_extractf32x4_ps(0xF, r, 0));
    _mm_storeu_ps(to + 4 * k + 16, _mm512_maskz_extractf32x4_ps(0xF, r, 1));
    _mm_storeu_ps(to + 4 * k + 32, _mm512_maskz_extractf32x4_ps(0xF, r, 2));
    _mm_storeu_ps(to + 4 * k + 48, _mm512_maskz_extractf32x4_ps(0xF, r, 3));
  }
#elif defined(__AVX__)
  const __m256d a = _mm256_castps_pd(_mm256_unpacklo_ps((__m256)v0, (__m256)v1));
  const __m256d b = _mm256_castps_pd(_mm256_unpackhi_ps((__m256)v0, (__m256)v1));
  const __m256d c = _mm256_castps_pd(_mm256_unpacklo_ps((__m256)v2, (__m256)v3));
  const __m256d d = _mm256_castps_pd(_mm256_unpackhi_ps((__m256)v2, (__m256)v3));
  const __m256d row[4] = {_mm256_unpacklo_pd(a, c), _mm256_unpackhi_pd(a, c), _mm256_unpacklo_pd(b, d),
                          _mm256_unpackhi_pd(b, d)};
  for (int k = 0; k < 4; ++k) {
    const __m256 r = _mm256_castpd_ps(row[k]);
    _mm_storeu_ps(to + 4 * k, _mm256_castps256_ps128(r));
    _mm_storeu_ps(to + 4 * k + 16, _mm256_extractf128_ps(r, 1));
  }
#elif defined(__x86_64__)
  __m128 a = (__m128)v0, b = (__m128)v1, c = (__m128)v2, d = (__m128)v3;
  _MM_TRANSPOSE4_PS(a, b, c, d);
  _mm_storeu_ps(to, a), _mm_storeu_ps(to + 4, b), _mm_storeu_ps(to + 8, c), _mm_storeu_ps(to + 12, d);
#elif defined(__aarch64__)
  vst4q_f32(to, (float32x4x4_t{{(float32x4_t)v0, (float32x4_t)v1, (float32x4_t)v2, (float32x4_t)v3}}));
#else
  for (int i = 0; i < kLanes<float>; ++i)
    to[4 * i] = v0[i], to[4 * i + 1] = v1[i], to[4 * i + 2] = v2[i], to[4 * i + 3] = v3[i];
#endif
}

/// z[0, count) of the logical indices from `first` on, a multiple of 128; writes up to 4 kCounters - 1 elements more.
inline void gaussian_row(uint64_t first, int count, uint32_t stream, uint64_t key, float* z) {
  for (int i = 0; i < count; i += 4 * kCounters) {
    Words x[4];
    philox_lanes((first + uint64_t(i)) / 4, stream, key, x);
    Vec<float> v[4];
    gaussian_pair<VectorArithmetic>(x[0], x[1], v[0], v[1]);
    gaussian_pair<VectorArithmetic>(x[2], x[3], v[2], v[3]);
    store_interleaved(z + i, v[0], v[1], v[2], v[3]);
  }
}

/// The same in {-1, 1}; writes up to 127 elements more.
inline void sign_row(uint64_t first, int count, uint32_t stream, uint64_t key, float* z) {
  constexpr int kVectors = 32 / kLanes<float>;  // of a word
  Words bit[kVectors];
  for (int i = 0; i < 32; ++i) bit[i / kLanes<float>][i % kLanes<float>] = 1u << i;
  for (int i = 0; i < count; i += kSigns * kCounters) {
    Words x[4];
    philox_lanes((first + uint64_t(i)) / kSigns, stream, key, x);
    float words[4 * kCounters];
    store_interleaved(words, (Vec<float>)x[0], (Vec<float>)x[1], (Vec<float>)x[2], (Vec<float>)x[3]);
    const int used = count - i < kSigns * kCounters ? int(ceil_div(count - i, 32)) : 4 * kCounters;
    for (int w = 0; w < used; ++w) {
      uint32_t word;
      std::memcpy(&word, words + w, 4);
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) {
        const Words plus = (Words)(((Words{} + word) & bit[j]) == 0);  // all ones where the sign is +
        store<float>(z + i + 32 * w + j * kLanes<float>, (Vec<float>)((plus & 0x80000000u) ^ 0xBF800000u));
      }
    }
  }
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
