// Attention against a plain double loop, with nothing but the kernel library: no torch, no Python. Built natively under
// the address and undefined-behaviour sanitizers and for aarch64 under an emulator. Exits 0 when every case holds.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "attention/attention.h"
#include "check.h"

namespace {

using namespace longspan::check;

// ---- one array [B, heads, length, D] with [B, length, heads, D] storage -------------------------------------------------
template <class S>
struct Array {
  int64_t B, N, L, D;
  std::vector<S> data;

  Array(int64_t b, int64_t n, int64_t l, int64_t d) : B(b), N(n), L(l), D(d), data(size_t(b * n * l * d)) {}
  void fill(uint32_t seed) { longspan::check::fill(data, seed); }
  double at(int64_t b, int64_t n, int64_t l, int64_t d) const {
    return to_double(data[size_t(((b * L + l) * N + n) * D + d)]);
  }
  View<4> view() { return {data.data(), kDType<S>, {B, N, L, D}, {L * N * D, D, N * D, 1}}; }
};

struct Case {
  const char* name;
  int64_t B, H, K, T, S, D;
  Pattern pattern;
  double softcap;
  std::vector<int32_t> lengths;  // documents; empty is one document
};

/// Written from the definitions, not from mask.h: positions and documents of token i of a packed row.
struct Token {
  int32_t doc, pos;
};
std::vector<Token> tokens_of(const Case& c, int64_t length) {
  std::vector<Token> out;
  for (size_t d = 0; d < c.lengths.size(); ++d)
    for (int32_t p = 0; p < c.lengths[d]; ++p) out.push_back({int32_t(d), p});
  for (int32_t p = 0; int64_t(out.size()) < length; ++p)
    out.push_back({c.lengths.empty() ? 0 : -1, p});  // the rest is padding
  return out;
}
bool sees(const Case& c, Token q, Token k, int64_t head) {
  if (q.doc < 0 || q.doc != k.doc) return false;
  if (c.pattern.causal && k.pos > q.pos) return false;
  if (c.pattern.model_window > 0 && q.pos - k.pos >= c.pattern.model_window) return false;
  if (k.pos < c.pattern.sinks) return true;
  if (c.pattern.kind == PatternKind::kWindow) return q.pos - k.pos < c.pattern.window;
  if (c.pattern.kind == PatternKind::kShiftedGroups) {
    const int half = head >= c.H / 2 ? c.pattern.group_size / 2 : 0;
    return (q.pos + half) / c.pattern.group_size == (k.pos + half) / c.pattern.group_size;
  }
  return true;
}

struct Expected {
  std::vector<double> out, dq, dk, dv, lse;
};

template <class S>
Expected plain_loop(const Case& c, const Array<S>& q, const Array<S>& k, const Array<S>& v, const Array<S>& dout) {
  Expected e;
  e.out.assign(size_t(c.B * c.T * c.H * c.D), 0), e.dq = e.out;
  e.dk.assign(size_t(c.B * c.S * c.K * c.D), 0), e.dv = e.dk;
  e.lse.assign(size_t(c.B * c.H * c.T), -INFINITY);
  const auto queries = tokens_of(c, c.T), keys = tokens_of(c, c.S);
  const double scale = 1 / std::sqrt(double(c.D));
  std::vector<double> p(static_cast<size_t>(c.S)), slope(static_cast<size_t>(c.S));
  for (int64_t b = 0; b < c.B; ++b)
    for (int64_t h = 0; h < c.H; ++h)
      for (int64_t t = 0; t < c.T; ++t) {
        const int64_t g = h / (c.H / c.K), row = ((b * c.T + t) * c.H + h) * c.D;
        double top = -INFINITY, sum = 0, mean = 0;
        for (int64_t s = 0; s < c.S; ++s) {
          double dot = 0;
          for (int64_t d = 0; d < c.D; ++d) dot += q.at(b, h, t, d) * k.at(b, g, s, d);
          p[s] = dot * scale, slope[s] = scale;
          if (c.softcap > 0) {
            const double tanh = std::tanh(p[s] / c.softcap);
            p[s] = c.softcap * tanh, slope[s] = scale * (1 - tanh * tanh);
          }
          if (!sees(c, queries[t], keys[s], h)) p[s] = -INFINITY;
          top = std::max(top, p[s]);
        }
        if (top == -INFINITY) continue;
        for (double& x : p) x = std::exp(x - top), sum += x;
        e.lse[size_t((b * c.H + h) * c.T + t)] = top + std::log(sum);
        std::vector<double> dp(static_cast<size_t>(c.S));
        for (int64_t s = 0; s < c.S; ++s) {
          p[s] /= sum;
          const int64_t key = ((b * c.S + s) * c.K + g) * c.D;
          for (int64_t d = 0; d < c.D; ++d) {
            e.out[row + d] += p[s] * v.at(b, g, s, d);
            dp[s] += dout.at(b, h, t, d) * v.at(b, g, s, d);
            e.dv[key + d] += p[s] * dout.at(b, h, t, d);
          }
          mean += p[s] * dp[s];
        }
        for (int64_t s = 0; s < c.S; ++s) {
          const double ds = p[s] * (dp[s] - mean) * slope[s];
          const int64_t key = ((b * c.S + s) * c.K + g) * c.D;
          for (int64_t d = 0; d < c.D; ++d) {
            e.dq[row + d] += ds * k.at(b, g, s, d);
            e.dk[key + d] += ds * q.at(b, h, t, d);
          }
        }
      }
  return e;
}

int failures = 0;

/// The largest error relative to the largest value; NaN fails.
template <class V>
void compare(const std::string& what, const V& got, const std::vector<double>& expected, double bound) {
  double worst = 0, largest = 1;
  bool bad = got.size() != expected.size();
  for (size_t i = 0; i < expected.size() && !bad; ++i) {
    const double x = to_double(got[i]);
    if (std::isinf(expected[i]) || std::isinf(x)) {
      bad = x != expected[i];
      continue;
    }
    bad = std::isnan(x);
    worst = std::max(worst, std::abs(x - expected[i])), largest = std::max(largest, std::abs(expected[i]));
  }
  if (bad || !(worst <= bound * largest)) {
    ++failures;
    std::printf("FAIL %s: error %.3g, allowed %.3g%s\n", what.c_str(), worst, bound * largest, bad ? ", not finite" : "");
  }
}

template <class S>
void check(const Case& c, Isa isa, const char* dtype, double bound) {
  using Stat = std::conditional_t<std::is_same_v<S, double>, double, float>;
  Array<S> q(c.B, c.H, c.T, c.D), k(c.B, c.K, c.S, c.D), v(c.B, c.K, c.S, c.D), out(c.B, c.H, c.T, c.D);
  Array<S> dout(c.B, c.H, c.T, c.D), dq(c.B, c.H, c.T, c.D), dk(c.B, c.K, c.S, c.D), dv(c.B, c.K, c.S, c.D);
  q.fill(1), k.fill(2), v.fill(3), dout.fill(4);
  std::vector<Stat> lse(size_t(c.B * c.H * c.T));
  std::vector<int32_t> query_planes, key_planes;
  AttentionSpec spec{c.pattern, {}, {}, 1 / std::sqrt(double(c.D)), c.softcap, {}};
  const auto planes = [&](std::vector<int32_t>& data, int64_t length, Layout& layout) {
    if (c.lengths.empty()) return;
    const auto tokens = tokens_of(c, length);
    for (const Token& t : tokens) data.push_back(t.doc);
    for (const Token& t : tokens) data.push_back(t.pos);
    layout = {data.data(), data.data() + length, nullptr, 0};
  };
  planes(query_planes, c.T, spec.queries), planes(key_planes, c.S, spec.keys);

  const AttentionTensors io{q.view(), k.view(), v.view(), out.view(), lse.data()};
  const AttentionGradients grads{dout.view(), dq.view(), dk.view(), dv.view(), nullptr};
  std::vector<S> first;
  for (int workers : {1, 2}) {
    Runner forward{workers, {}}, backward{workers, {}};
    attention_fwd_cpu(spec, io, forward.context(isa));
    attention_bwd_cpu(spec, io, grads, backward.context(isa));
    std::vector<S> all;
    for (const auto* array : {&out, &dq, &dk, &dv}) all.insert(all.end(), array->data.begin(), array->data.end());
    if (workers == 1) first = all;
    if (!all.empty() && std::memcmp(first.data(), all.data(), all.size() * sizeof(S))) {
      ++failures;
      std::printf("FAIL %s %s %s: two threads give other bits than one\n", isa_name(isa), c.name, dtype);
    }
  }
  const Expected e = plain_loop(c, q, k, v, dout);
  const std::string name = std::string(isa_name(isa)) + " " + c.name + " " + dtype + " ";
  compare(name + "out", out.data, e.out, bound);
  compare(name + "lse", lse, e.lse, std::is_same_v<S, Bf16> ? 1e-5 : bound);
  compare(name + "dq", dq.data, e.dq, bound);
  compare(name + "dk", dk.data, e.dk, bound);
  compare(name + "dv", dv.data, e.dv, bound);
}

Pattern pattern(PatternKind kind, int size = 0, int sinks = 0) {
  Pattern p;
  p.kind = kind, p.sinks = sinks;
  if (kind == PatternKind::kWindow) p.window = size;
  if (kind == PatternKind::kShiftedGroups) p.group_size = size;
  return p;
}

}  // namespace

/// Arguments: instruction sets by name; none runs the best of this machine.
int main(int argc, char** argv) {
  Pattern both_ways = pattern(PatternKind::kFull), model_window = pattern(PatternKind::kFull);
  both_ways.causal = false, model_window.model_window = 20;
  const Case cases[] = {
      {"causal", 2, 4, 2, 150, 150, 24, pattern(PatternKind::kFull), 0, {}},
      {"one token", 1, 2, 1, 1, 1, 8, pattern(PatternKind::kFull), 0, {}},
      {"no token", 1, 2, 1, 0, 0, 8, pattern(PatternKind::kFull), 0, {}},
      {"not causal", 1, 3, 3, 70, 90, 17, both_ways, 0, {70, 20}},
      {"groups", 1, 4, 2, 301, 301, 16, pattern(PatternKind::kShiftedGroups, 64, 4), 0, {}},
      {"window and softcap", 1, 3, 1, 300, 300, 5, pattern(PatternKind::kWindow, 33, 2), 3.0, {}},
      {"packed and padded", 1, 2, 1, 290, 290, 12, pattern(PatternKind::kShiftedGroups, 32), 0, {100, 0, 1, 150}},
      {"model window", 1, 2, 2, 280, 280, 9, model_window, 0, {}},
      {"wide head", 1, 2, 1, 40, 40, 256, pattern(PatternKind::kFull), 0, {}},
  };
  std::vector<const char*> names(argv + 1, argv + argc);
  if (names.empty()) names.push_back("");
  for (const char* name : names) {
    const Isa isa = select_isa(name);
    for (const Case& c : cases) {
      check<float>(c, isa, "float", 2e-5);
      check<double>(c, isa, "double", 1e-12);
      check<Bf16>(c, isa, "bfloat16", 8e-3);
    }
    std::printf("%s: %zu cases in float, double and bfloat16\n", isa_name(isa), std::size(cases));
  }
  std::printf("%d failures\n", failures);
  return failures != 0;
}
