#pragma once
// From random words to noise, in steps that every device and instruction set rounds alike: additions, products, square
// roots and conversions of integers, each rounded to nearest even by itself, and no fused multiply-add.
#include "common/philox.h"
#include "perturb/perturb.h"

#if defined(__CUDACC__)
#define LONGSPAN_NOISE __device__ __forceinline__
#else
#define LONGSPAN_NOISE inline
#endif

namespace longspan::kernels {

inline constexpr int kSigns = 128;  // of one counter: 32 a word

LONGSPAN_HD inline uint64_t noise_key(int64_t seed, int64_t step, uint32_t tensor_id) {
  return uint64_t(seed) ^ (uint64_t(step) & 0xFFFFFFFFu) ^ (uint64_t(tensor_id) << 32);
}

// The functions below are written once for numbers and for vectors. `A` (arithmetic) has types F of floats and U of 32-bit
// words, and mul, add, sqrt, splat, select(U mask, F, F), from_signed(U) -> F, bits(F) -> U, from_bits(U) -> F,
// sign_mask(U): all ones where the highest bit is set.

template <class A>
LONGSPAN_NOISE typename A::F polynomial(typename A::F, float last) {
  return A::splat(last);
}
template <class A, class... Rest>
LONGSPAN_NOISE typename A::F polynomial(typename A::F x, float first, Rest... rest) {
  return A::add(A::mul(polynomial<A>(x, rest...), x), A::splat(first));
}

/// sqrt(-2 ln u) for u = (x + 1/2) / 2^32, which float32 does not hold near 1. Both halves of (0, 1) are exact where they
/// are small: n = min(x, 2^32 - 1 - x), h = n + 1/2 and
///
///   u < 1/2: u = 2^-k (1 - a), a = 1 - mantissa of h in (0, 1/2], k at least 0
///   u > 1/2: u = 1 - a, a = h / 2^32, k = 0
///   -2 ln u = 2 ln 2 k + a P(a), all terms positive; P(a) = -2 ln(1 - a) / a to 2.3e-8, minimax of the relative error
template <class A>
LONGSPAN_NOISE typename A::F gaussian_radius(typename A::U x) {
  using F = typename A::F;
  using U = typename A::U;
  const U high = A::sign_mask(x);
  const F h = A::add(A::from_signed(x ^ high), A::splat(0.5f));
  const U bits = A::bits(h);
  const F mantissa = A::from_bits((bits & 0x007FFFFFu) | 0x3F000000u);
  const F a = A::select(high, A::mul(h, A::splat(0x1p-32f)), A::add(A::splat(1.f), -mantissa));
  const F k = A::from_signed(~high & (158u - (bits >> 23)));
  const F p = polynomial<A>(a, 2.f, 0.999985695f, 0.667401254f, 0.485610157f, 0.539225459f, -0.407077581f, 2.51533866f,
                            -3.39162302f, 2.88221526f);
  return A::sqrt(A::add(A::mul(k, A::splat(1.38629436f)), A::mul(a, p)));
}

/// cos and sin of 2 pi (y + 1/2) / 2^32: quarter turns from the two highest bits of y + 2^29, the rest t in [-1, 1] eighths
/// by minimax polynomials in t^2 (6e-11 and 3.3e-9 of relative error).
template <class A>
LONGSPAN_NOISE void turn(typename A::U y, typename A::F& cos, typename A::F& sin) {
  using F = typename A::F;
  using U = typename A::U;
  const U w = y + 0x20000000u;
  const F rest = A::from_signed((w & 0x3FFFFFFFu) - 0x20000000u);
  const F t = A::mul(A::add(rest, A::splat(0.5f)), A::splat(0x1p-29f)), s = A::mul(t, t);
  const F c = polynomial<A>(s, 1.f, -0.308425128f, 0.0158543233f, -0.000325936504f, 3.52876168e-06f);
  const F d = A::mul(t, polynomial<A>(s, 0.785398185f, -0.0807454363f, 0.00249000103f, -3.5950452e-05f));
  const U odd = A::sign_mask(w << 1);
  cos = A::from_bits(A::bits(A::select(odd, d, c)) ^ ((w + 0x40000000u) & 0x80000000u));
  sin = A::from_bits(A::bits(A::select(odd, c, d)) ^ (w & 0x80000000u));
}

/// The Box-Muller pair of two words: independent standard normals, |z| < 6.77.
template <class A>
LONGSPAN_NOISE void gaussian_pair(typename A::U x, typename A::U y, typename A::F& first, typename A::F& second) {
  typename A::F cos, sin;
  turn<A>(y, cos, sin);
  const typename A::F radius = gaussian_radius<A>(x);
  first = A::mul(radius, cos), second = A::mul(radius, sin);
}

}  // namespace longspan::kernels
