#pragma once
// SIMD in plain vector types: one source for SSE, AVX2, AVX-512 and NEON. Only for per-ISA sources.
#include <cstdint>
#include <cstring>
#include <limits>

#include "common/types.h"

#ifndef LONGSPAN_ISA_NS
#error "vec.h is for sources that are compiled once per instruction set"
#endif

namespace longspan::kernels::LONGSPAN_ISA_NS {

#if defined(__AVX512F__)
inline constexpr int kVecBytes = 64;
#elif defined(__AVX__)
inline constexpr int kVecBytes = 32;
#else
inline constexpr int kVecBytes = 16;
#endif

template <class T>
struct VecOf;
template <>
struct VecOf<float> {
  typedef float type __attribute__((vector_size(kVecBytes)));
  typedef int32_t mask __attribute__((vector_size(kVecBytes)));
};
template <>
struct VecOf<double> {
  typedef double type __attribute__((vector_size(kVecBytes)));
  typedef int64_t mask __attribute__((vector_size(kVecBytes)));
};
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
using Mask = typename VecOf<T>::mask;
template <class T>
inline constexpr int kLanes = kVecBytes / int(sizeof(T));

/// Storage type of bfloat16; arithmetic happens in float.
struct bfloat16 {
  uint16_t bits;
};

inline float to_float(bfloat16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

/// Round to nearest even; NaN stays NaN.
inline bfloat16 to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  if ((bits & 0x7fffffffu) > 0x7f800000u) rounded = (bits >> 16) | 0x40u;
  return {uint16_t(rounded)};
}

template <class T>
inline T load_as(const T* p) {
  return *p;
}
template <class T>
inline T load_as(const bfloat16* p) {
  return T(to_float(*p));
}
template <class T>
inline void store_as(T* p, T x) {
  *p = x;
}
template <class T>
inline void store_as(bfloat16* p, T x) {
  *p = to_bfloat16(float(x));
}

/// The type a storage type is computed in.
template <class S>
struct ComputeOf {
  using type = S;
};
template <>
struct ComputeOf<bfloat16> {
  using type = float;
};
template <class S>
using Compute = typename ComputeOf<S>::type;

template <class T>
inline Vec<T> load(const T* p) {
  Vec<T> out;
  std::memcpy(&out, p, sizeof out);
  return out;
}
template <class T>
inline void store(T* p, Vec<T> x) {
  std::memcpy(p, &x, sizeof x);
}
template <class T>
inline Vec<T> splat(T x) {
  return Vec<T>{} + x;
}
template <class T>
inline Vec<T> select(Mask<T> m, Vec<T> a, Vec<T> b) {
  return m ? a : b;
}
template <class T>
inline Vec<T> max(Vec<T> a, Vec<T> b) {
  return a > b ? a : b;
}

template <class T>
inline T horizontal_max(Vec<T> a) {
  T out = a[0];
  for (int i = 1; i < kLanes<T>; ++i) out = a[i] > out ? a[i] : out;
  return out;
}
template <class T>
inline T horizontal_sum(Vec<T> a) {
  for (int width = kLanes<T> / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) a[i] += a[i + width];
  return a[0];
}

/// a * b + c as the vector products round it: once where the instruction set has a fused multiply-add.
#if defined(__FMA__) || defined(__aarch64__)
inline float multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double multiply_add(double a, double b, double c) { return __builtin_fma(a, b, c); }
#else
template <class T>
inline T multiply_add(T a, T b, T c) {
  return a * b + c;
}
#endif

template <class T>
inline constexpr T kMinusInfinity = -std::numeric_limits<T>::infinity();

namespace detail {
// 2^f = sum (f ln 2)^n / n!, |f| <= 1/2: degree 7 is within 5e-9 of float, degree 13 within 1e-17 of double.
inline constexpr double kExp2[] = {1.0,
                                   0.69314718055994530942,
                                   0.24022650695910071233,
                                   0.055504108664821579953,
                                   0.0096181291076284771619,
                                   0.0013333558146428443423,
                                   1.5403530393381609954e-4,
                                   1.5252733804059840280e-5,
                                   1.3215486790144309488e-6,
                                   1.0178086009239699727e-7,
                                   7.0549116208011233299e-9,
                                   4.4455382718708114976e-10,
                                   2.5678435993488205142e-11,
                                   1.3691488853904128881e-12};
template <class T>
struct ExpShape;
template <>
struct ExpShape<float> {
  static constexpr int degree = 7, mantissa = 23;
  static constexpr float magic = 12582912.f, lowest = -126.f, highest = 127.f;  // 1.5 * 2^23 rounds to an integer
};
template <>
struct ExpShape<double> {
  static constexpr int degree = 13, mantissa = 52;
  static constexpr double magic = 6755399441055744.0, lowest = -1022., highest = 1023.;
};
}  // namespace detail

/// 2^x for x <= highest exponent; exactly 0 below the smallest normal number and at -inf. NaN gives NaN.
template <class T>
inline Vec<T> exp2(Vec<T> x) {
  using Shape = detail::ExpShape<T>;
  const Mask<T> tiny = x < Shape::lowest;
  const Vec<T> clamped = select<T>(tiny, splat<T>(Shape::lowest), x);
  const Vec<T> shifted = clamped + Shape::magic;
  const Vec<T> f = clamped - (shifted - Shape::magic);
  Vec<T> p = splat<T>(T(detail::kExp2[Shape::degree]));
#pragma GCC unroll 16
  for (int n = Shape::degree - 1; n >= 0; --n) p = p * f + T(detail::kExp2[n]);
  const Mask<T> scale = (Mask<T>)shifted << Shape::mantissa;  // the low bits of `shifted` are the integer part
  const Vec<T> scaled = (Vec<T>)((Mask<T>)p + scale);
  return select<T>(tiny, Vec<T>{}, scaled);
}

/// tanh(x): Taylor-like odd polynomial below 1/4, 1 - 2 / (e^{2x} + 1) above; relative error a few ulp.
template <class T>
inline Vec<T> tanh(Vec<T> x) {
  const Vec<T> a = select<T>(x < T(0), -x, x);
  const Vec<T> capped = select<T>(a > T(20), splat<T>(T(20)), a);
  const Vec<T> e = exp2<T>(capped * T(2.8853900817779268147));
  const Vec<T> large = T(1) - T(2) / (e + T(1));
  // tanh(a) = a (1 - a^2/3 + 2a^4/15 - ...): coefficients of the Maclaurin series up to a^23.
  constexpr double kSeries[] = {1.0,
                                -1.0 / 3,
                                2.0 / 15,
                                -17.0 / 315,
                                62.0 / 2835,
                                -1382.0 / 155925,
                                21844.0 / 6081075,
                                -929569.0 / 638512875,
                                6404582.0 / 10854718875,
                                -443861162.0 / 1856156927625,
                                18888466084.0 / 194896477400625,
                                -113927491862.0 / 2900518163668125};
  const Vec<T> z = a * a;
  Vec<T> p = splat<T>(T(kSeries[11]));
#pragma GCC unroll 16
  for (int n = 10; n >= 0; --n) p = p * z + T(kSeries[n]);
  const Vec<T> magnitude = select<T>(a < T(0.25), a * p, large);
  return select<T>(x < T(0), -magnitude, magnitude);
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
