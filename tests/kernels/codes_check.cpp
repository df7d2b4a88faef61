// Codes, kept keys and the two attentions over them against their definitions, with nothing but the kernel library; built as
// kernel_check.cpp is. Exits 0 when every case holds.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "attention/attention.h"
#include "check.h"
#include "list_attention/list_attention.h"
#include "pq/pq.h"
#include "topl/topl.h"

namespace {

using namespace longspan::check;

struct Case {
  const char* name;
  int64_t B, H, K, T, D, M, E;
  Scorer scorer;
  int64_t budget;
  int window, sinks;
};

int failures = 0;

void fail(const std::string& what, const char* why) {
  ++failures;
  std::printf("FAIL %s: %s\n", what.c_str(), why);
}

/// [B, heads, length, D] with [B, length, heads, D] storage.
template <class S>
View<4> view(std::vector<S>& data, int64_t B, int64_t N, int64_t L, int64_t D) {
  return {data.data(), kDType<S>, {B, N, L, D}, {L * N * D, D, N * D, 1}};
}

template <class S>
struct Problem {
  using Wide = std::conditional_t<std::is_same_v<S, double>, double, float>;
  const Case& c;
  Isa isa;
  std::string name;
  int64_t width = (c.D + c.M - 1) / c.M, groups = c.scorer == Scorer::kAdc ? c.K : 1, W = code_words(c.M, c.E);
  std::vector<S> q = std::vector<S>(c.B * c.T * c.H * c.D), k = std::vector<S>(c.B * c.T * c.K * c.D), v = k;
  std::vector<Wide> words = std::vector<Wide>(groups * c.M * c.E * width);
  std::vector<int32_t> key_codes = std::vector<int32_t>(c.B * c.K * c.T * W), query_codes{};
  std::vector<uint8_t> tables{};
  std::vector<int16_t> threshold16 = std::vector<int16_t>(c.B * c.H * c.T);
  std::vector<int8_t> threshold8 = std::vector<int8_t>(c.B * c.H * c.T);
  std::vector<int32_t> cut = std::vector<int32_t>(c.B * c.H * c.T), kept = cut, lists{};

  Codebook codebook() { return {words.data(), groups, c.M, c.E, width}; }
  Context context(Runner& runner) { return runner.context(isa); }

  double distance(const std::vector<S>& z, int64_t row, int64_t g, int64_t m, int64_t e) {
    Wide sum = 0;
    for (int64_t j = 0; j < width; ++j) {
      const int64_t d = m * width + j;
      const Wide x = d < c.D ? Wide(to_double(z[row * c.D + d])) : Wide(0);
      volatile Wide difference = x - words[((g * c.M + m) * c.E + e) * width + j];  // rounded one by one
      volatile Wide square = difference * difference;
      sum += square;
    }
    return sum;
  }

  void encode(std::vector<S>& z, int64_t heads, std::vector<int32_t>& codes) {
    Runner runner{2, {}};
    pq_encode_cpu(codebook(), 2, {view(z, c.B, heads, c.T, c.D), codes.data()}, context(runner));
    for (int64_t b = 0; b < c.B; ++b)
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t t = 0; t < c.T; ++t)
          for (int64_t m = 0; m < c.M; ++m) {
            int64_t best = 0;
            const int64_t row = (b * c.T + t) * heads + h, g = h / (heads / groups);
            for (int64_t e = 1; e < c.E; ++e)
              if (distance(z, row, g, m, e) < distance(z, row, g, m, best)) best = e;
            if (code_at(codes.data() + ((b * heads + h) * c.T + t) * W, int(m), code_bits(c.E)) != best)
              return fail(name, "a code is not the nearest codeword's");
          }
  }

  int score(int64_t b, int64_t h, int64_t t, int64_t j) {
    const int bits = code_bits(c.E);
    const int32_t* key = key_codes.data() + ((b * c.K + h / (c.H / c.K)) * c.T + j) * W;
    int sum = 0;
    for (int64_t m = 0; m < c.M; ++m) {
      const int code = code_at(key, int(m), bits);
      if (c.scorer == Scorer::kMatch)
        sum += code == code_at(query_codes.data() + ((b * c.H + h) * c.T + t) * W, int(m), bits);
      else
        sum += tables[((((b * c.H + h) * c.T + t) * c.M + m) << bits) + code];
    }
    return sum;
  }

  void choose() {
    Runner runner{2, {}};
    ToplSpec spec{};
    spec.pattern.kind = PatternKind::kSelected, spec.pattern.window = c.window, spec.pattern.sinks = c.sinks;
    spec.budget = c.budget, spec.B = c.B, spec.H = c.H, spec.K = c.K, spec.T = spec.S = c.T;
    ToplTensors io{};
    io.selection = selection();
    if (c.scorer == Scorer::kAdc) {
      io.q = view(q, c.B, c.H, c.T, c.D);
      tables.resize(size_t(c.B * c.H * c.T * table_bytes(codebook())));
      adc_table_cpu(spec, io, tables.data(), context(runner));
    }
    void* threshold = c.scorer == Scorer::kMatch ? static_cast<void*>(threshold8.data()) : threshold16.data();
    topl_threshold_cpu(spec, io, {threshold, cut.data(), kept.data()}, context(runner));
    lists.assign(size_t(c.B * c.H * c.T * slots()), -7);
    io.selection.threshold = threshold, io.selection.cut = cut.data();
    topl_indices_cpu(spec, io, slots(), lists.data(), context(runner));
    for (int64_t b = 0; b < c.B; ++b)
      for (int64_t h = 0; h < c.H; ++h)
        for (int64_t t = 0; t < c.T; ++t)
          if (!right_list(b, h, t)) return fail(name, "a list is not that of the sorted scores");
  }

  int64_t slots() const { return c.budget + c.window + c.sinks; }

  bool right_list(int64_t b, int64_t h, int64_t t) {
    std::vector<std::pair<int, int64_t>> others;
    std::vector<int32_t> wanted;
    for (int64_t j = 0; j <= t; ++j)
      if (j < c.sinks || t - j < c.window)
        wanted.push_back(int32_t(j));
      else
        others.push_back({score(b, h, t, j), j});
    std::sort(others.rbegin(), others.rend());
    for (auto& [s, j] : others)
      if (int64_t(wanted.size()) < c.budget) wanted.push_back(int32_t(j));
    std::sort(wanted.begin(), wanted.end());
    const int64_t row = (b * c.H + h) * c.T + t;
    if (kept[row] != int32_t(wanted.size())) return false;
    wanted.resize(size_t(slots()), -1);
    return std::equal(wanted.begin(), wanted.end(), lists.begin() + row * slots());
  }

  Selection selection() {
    Selection s;
    s.scorer = c.scorer, s.codebook = codebook(), s.key_codes = key_codes.data();
    if (c.scorer == Scorer::kMatch) s.query_codes = query_codes.data();
    return s;
  }

  /// Attention under the selection and over its lists are one computation.
  void attend(double bound) {
    AttentionSpec spec{{}, {}, {}, 1 / std::sqrt(double(c.D)), 2.0, selection()};
    spec.pattern.kind = PatternKind::kSelected, spec.pattern.window = c.window, spec.pattern.sinks = c.sinks;
    spec.selection.threshold = c.scorer == Scorer::kMatch ? static_cast<void*>(threshold8.data()) : threshold16.data();
    spec.selection.cut = cut.data();
    std::vector<S> dout = q, out[2] = {q, q}, dq[2] = {q, q}, dk[2] = {k, k}, dv[2] = {k, k};
    fill(dout, 9);
    std::vector<Wide> lse[2] = {std::vector<Wide>(c.B * c.H * c.T), std::vector<Wide>(c.B * c.H * c.T)};
    std::vector<int32_t> starts(c.B * c.H * (c.T + 1)), rows(c.B * c.H * c.T * slots());
    Runner runner{2, {}};
    const Context at = context(runner);
    const auto queries = [&](std::vector<S>& x) { return view(x, c.B, c.H, c.T, c.D); };
    const auto keys = [&](std::vector<S>& x) { return view(x, c.B, c.K, c.T, c.D); };
    const AttentionTensors mask{queries(q), keys(k), keys(v), queries(out[0]), lse[0].data()};
    attention_fwd_cpu(spec, mask, at);
    attention_bwd_cpu(spec, mask, {queries(dout), queries(dq[0]), keys(dk[0]), keys(dv[0]), nullptr}, at);
    KeyLists key_lists{lists.data(), slots()};
    list_transpose_cpu({c.B * c.H, c.T, slots(), c.T}, lists.data(), starts.data(), rows.data(), at);
    key_lists.starts = starts.data(), key_lists.rows = rows.data();
    const ListAttentionTensors list{queries(q), keys(k), keys(v), queries(out[1]), lse[1].data()};
    list_attention_fwd_cpu(key_lists, spec.scale, spec.softcap, list, at);
    list_attention_bwd_cpu(key_lists, spec.scale, spec.softcap, list,
                           {queries(dout), queries(dq[1]), keys(dk[1]), keys(dv[1]), nullptr}, at);
    const auto same = [&](const auto& a, const auto& b, const char* what) {
      double worst = 0, largest = 1;
      for (size_t i = 0; i < a.size(); ++i) {
        const double x = to_double(a[i]), y = to_double(b[i]);
        if (std::isnan(x) || std::isnan(y)) return fail(name, what);
        worst = std::max(worst, std::abs(x - y)), largest = std::max(largest, std::abs(y));
      }
      if (worst > bound * largest) fail(name, what);
    };
    same(out[0], out[1], "out of masks and lists differ");
    same(lse[0], lse[1], "lse of masks and lists differ");
    same(dq[0], dq[1], "dq of masks and lists differ");
    same(dk[0], dk[1], "dk of masks and lists differ");
    same(dv[0], dv[1], "dv of masks and lists differ");
  }

  void run(double bound) {
    fill(q, 1), fill(k, 2), fill(v, 3), fill(words, 4);
    encode(k, c.K, key_codes);
    if (c.scorer == Scorer::kMatch) {
      query_codes.resize(size_t(c.B * c.H * c.T * W));
      encode(q, c.H, query_codes);
    }
    choose();
    attend(bound);
  }
};

template <class S>
void check(const Case& c, Isa isa, const char* dtype, double bound) {
  Problem<S>{c, isa, std::string(isa_name(isa)) + " " + c.name + " " + dtype}.run(bound);
}

}  // namespace

/// Arguments: instruction sets by name; none runs the best of this machine.
int main(int argc, char** argv) {
  const Case cases[] = {
      {"asymmetric", 2, 4, 2, 150, 24, 3, 16, Scorer::kAdc, 20, 5, 2},
      {"equal codes", 1, 4, 2, 150, 24, 3, 16, Scorer::kMatch, 20, 0, 0},
      {"pieces that are not full", 1, 2, 1, 70, 13, 5, 7, Scorer::kAdc, 9, 3, 0},
      {"bytes", 1, 2, 2, 90, 16, 4, 40, Scorer::kAdc, 11, 0, 3},
      {"equal bytes", 1, 2, 1, 90, 16, 4, 40, Scorer::kMatch, 11, 4, 1},
      {"one codeword", 1, 2, 1, 80, 8, 1, 1, Scorer::kMatch, 10, 0, 0},
      {"many pieces", 1, 1, 1, 140, 128, 16, 16, Scorer::kAdc, 16, 4, 4},
      {"more than there is", 1, 2, 1, 40, 16, 2, 4, Scorer::kAdc, 99, 0, 0},
  };
  std::vector<const char*> names(argv + 1, argv + argc);
  if (names.empty()) names.push_back("");
  for (const char* name : names) {
    const Isa isa = select_isa(name);
    for (const Case& c : cases) {
      check<float>(c, isa, "float", 2e-5);
      check<double>(c, isa, "double", 1e-12);
      check<Bf16>(c, isa, "bfloat16", 1.6e-2);
    }
    std::printf("%s: %zu cases in float, double and bfloat16\n", isa_name(isa), std::size(cases));
  }
  std::printf("%d failures\n", failures);
  return failures != 0;
}
