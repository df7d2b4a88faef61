#pragma once
// Activations and their slopes on vectors. Only for per-ISA sources.
#include <cmath>

#include "common/vec.h"
#include "glu/glu.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {

/// act(x) and its derivative.
template <class T>
struct Activated {
  Vec<T> value, slope;
};

/// 1 / (1 + e^-x), and 1 minus it, each to its own last bits.
template <class T>
struct Sigmoid {
  Vec<T> value, rest;
};
template <class T>
inline Sigmoid<T> sigmoid(Vec<T> x) {
  const Mask<T> positive = x > T(0);
  const Vec<T> e = exp2<T>(select<T>(positive, -x, x) * T(1.4426950408889634)), large = T(1) / (T(1) + e), small = e * large;
  return {select<T>(positive, large, small), select<T>(positive, small, large)};
}

/// Upper tail of the normal distribution at a >= 0: erfc(a / sqrt 2) / 2.
template <class T>
inline Vec<T> normal_tail(Vec<T> a) {
  if constexpr (sizeof(T) == 8) {
    Vec<T> out;
    for (int i = 0; i < kLanes<T>; ++i) out[i] = T(0.5) * std::erfc(a[i] * T(0.70710678118654752));
    return out;
  } else {
    // erfc(z) = t p(t) e^(-z^2), t = 1 / (1 + 0.4 z): p by least squares on Chebyshev points, within 7e-9 of it.
    constexpr float kTail[] = {0.225675869f,   0.225674803f, 0.207625806f,  0.171672041f, 0.119204419f, 0.0836488831f,
                               -0.0469069524f, 0.138137934f, -0.236344257f, 0.140942506f, -0.029331058f};
    const Vec<T> z = a * 0.70710678118654752f, t = 1.f / (1.f + 0.4f * z);
    Vec<T> p = splat<T>(kTail[10]);
#pragma GCC unroll 16
    for (int n = 9; n >= 0; --n) p = p * t + kTail[n];
    return 0.5f * t * p * exp2<T>(a * a * -0.72134752044448170f);
  }
}

template <class T, Activation Kind>
inline Activated<T> activate(Vec<T> x) {
  const Mask<T> positive = x > T(0);
  if constexpr (Kind == Activation::kSilu) {
    const Sigmoid<T> s = sigmoid<T>(x);
    return {x * s.value, s.value * (T(1) + x * s.rest)};
  } else if constexpr (Kind == Activation::kGelu) {
    const Vec<T> a = select<T>(positive, x, -x), tail = normal_tail<T>(a);
    const Vec<T> phi = select<T>(positive, T(1) - tail, tail);
    const Vec<T> density = T(0.39894228040143268) * exp2<T>(a * a * T(-0.72134752044448170));
    return {x * phi, phi + x * density};
  } else if constexpr (Kind == Activation::kGeluTanh) {
    // x (1 + tanh u) / 2 = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)
    constexpr T c = T(1.5957691216057308), k = T(0.044715);
    const Vec<T> high = select<T>(x > T(40), splat<T>(T(40)), x), v = select<T>(high < T(-40), splat<T>(T(-40)), high);
    const Sigmoid<T> s = sigmoid<T>(c * (v + k * v * v * v));  // beyond 40 it is 0 or 1, and x^3 would overflow
    return {x * s.value, s.value * (T(1) + v * s.rest * c * (T(1) + 3 * k * v * v))};
  } else if constexpr (Kind == Activation::kRelu) {
    return {select<T>(x < T(0), Vec<T>{}, x), select<T>(positive, splat<T>(T(1)), Vec<T>{})};
  } else {
    const Vec<T> r = select<T>(x < T(0), Vec<T>{}, x);
    return {r * r, T(2) * r};
  }
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
