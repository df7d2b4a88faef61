// The matrix product and the loss against plain double loops, with nothing but the kernel library: no torch, no Python.
// Built natively under the address and undefined-behaviour sanitizers and for aarch64 under an emulator. Exits 0 when
// every case holds.
#include <cmath>
#include <cstdio>
#include <vector>

#include "check.h"
#include "common/gemm.h"
#include "loss/loss.h"

namespace {

using namespace longspan::check;

int failures = 0;

template <class S>
struct Matrix {
  int64_t rows, columns;
  std::vector<S> data;

  Matrix(int64_t r, int64_t c, uint32_t seed = 0) : rows(r), columns(c), data(size_t(r * c)) {
    if (seed)
      fill(data, seed);
    else
      for (S& x : data) x = from_double<S>(NAN);
  }
  double at(int64_t i, int64_t j) const { return to_double(data[size_t(i * columns + j)]); }
  View<2> view() { return {data.data(), kDType<S>, {rows, columns}, {columns, 1}}; }
};

void expect(bool ok, const char* what, const char* type, Isa isa, double got, double wanted) {
  if (ok) return;
  std::printf("FAILED %s %s %s: %.9g instead of %.9g\n", isa_name(isa), type, what, got, wanted);
  ++failures;
}

/// Compares with a tolerance relative to the largest value that may occur.
template <class S, class F>
void compare(const Matrix<S>& got, F&& wanted, double tolerance, const char* what, const char* type, Isa isa) {
  for (int64_t i = 0; i < got.rows; ++i)
    for (int64_t j = 0; j < got.columns; ++j) {
      const double w = wanted(i, j), g = got.at(i, j);
      if (!(std::abs(g - w) <= tolerance * (1 + std::abs(w)))) return expect(false, what, type, isa, g, w);
    }
}

struct Product {
  int64_t m, n, k;
  bool transpose_a, transpose_b;
  double beta;
};

template <class S>
void check_product(const Product& p, Isa isa, const char* type, double tolerance) {
  Runner runner{3, {}};
  const Context context = runner.context(isa);
  Matrix<S> a(p.transpose_a ? p.k : p.m, p.transpose_a ? p.m : p.k, 1),
      b(p.transpose_b ? p.n : p.k, p.transpose_b ? p.k : p.n, 2);
  Matrix<S> c(p.m, p.n, p.beta != 0 ? 3 : 0);
  const Matrix<S> before = c;
  gemm_cpu({p.transpose_a, p.transpose_b, p.m, p.n, p.k, a.data.data(), a.columns, b.data.data(), b.columns, p.beta,
            c.data.data(), c.columns, kDType<S>, kDType<S>, kDType<S>},
           context);
  const auto wanted = [&](int64_t i, int64_t j) {
    double sum = p.beta != 0 ? p.beta * before.at(i, j) : 0;
    for (int64_t k = 0; k < p.k; ++k)
      sum += (p.transpose_a ? a.at(k, i) : a.at(i, k)) * (p.transpose_b ? b.at(j, k) : b.at(k, j));
    return sum;
  };
  compare(c, wanted, tolerance, "product", type, isa);
}

struct Loss {
  int64_t T, C, V, segment;
  double scale, cap;
  int ignored;  // every so many rows; 1 is all, 0 is none
};

template <class S>
void check_loss(const Loss& p, Isa isa, const char* type, double tolerance) {
  using Statistics = std::conditional_t<std::is_same_v<S, double>, double, float>;
  Runner runner{3, {}};
  Context context = runner.context(isa);
  OwnGemm own(context.parallel, context.workspace, isa);
  context.gemm = own.gemm();
  Matrix<S> hidden(p.T, p.C, 1), weight(p.V, p.C, 2), bias(1, p.V, 3), dhidden(p.T, p.C), dweight(p.V, p.C), dbias(1, p.V);
  Matrix<Statistics> row_weights(1, p.T, 4), losses(1, p.T), total(1, 1);
  std::vector<int64_t> labels;
  for (int64_t t = 0; t < p.T; ++t) labels.push_back(p.ignored && t % p.ignored == 0 ? -100 : t * 7919 % p.V);
  linear_cross_entropy_cpu({p.segment, -100, p.scale, p.cap},
                           {hidden.view(), weight.view(), bias.data.data(), labels.data(), row_weights.data.data(),
                            losses.data.data(), total.data.data(), dhidden.view(), dweight.view(), dbias.data.data()},
                           context);

  std::vector<double> want_losses(size_t(p.T)), dx(size_t(p.T * p.V));
  double want_total = 0;
  for (int64_t t = 0; t < p.T; ++t) {
    if (labels[size_t(t)] < 0) continue;
    std::vector<double> z(size_t(p.V)), slope(size_t(p.V), 1.0);
    double sum = 0;
    for (int64_t v = 0; v < p.V; ++v) {
      double x = bias.at(0, v);
      for (int64_t c = 0; c < p.C; ++c) x += hidden.at(t, c) * weight.at(v, c);
      x *= p.scale;
      const double tanh = p.cap > 0 ? std::tanh(x / p.cap) : 0;
      z[size_t(v)] = p.cap > 0 ? p.cap * tanh : x;
      slope[size_t(v)] = 1 - tanh * tanh;
      sum += std::exp(z[size_t(v)]);
    }
    const auto label = size_t(labels[size_t(t)]);
    const double w = row_weights.at(0, t);
    want_losses[size_t(t)] = w * (std::log(sum) - z[label]);
    want_total += want_losses[size_t(t)];
    for (size_t v = 0; v < size_t(p.V); ++v)
      dx[size_t(t * p.V) + v] = w * p.scale * slope[v] * (std::exp(z[v]) / sum - (v == label));
  }
  const auto dx_at = [&](int64_t t, int64_t v) { return dx[size_t(t * p.V + v)]; };
  const double exact = std::is_same_v<S, double> ? 1e-11 : 2e-5;  // losses are not rounded to bfloat16
  compare(losses, [&](int64_t, int64_t t) { return want_losses[size_t(t)]; }, exact, "losses", type, isa);
  compare(total, [&](int64_t, int64_t) { return want_total; }, exact * double(p.T + 1), "total", type, isa);
  const auto dot = [](int64_t count, auto&& term) {
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += term(i);
    return sum;
  };
  const auto want_dhidden = [&](int64_t t, int64_t c) {
    return dot(p.V, [&](int64_t v) { return dx_at(t, v) * weight.at(v, c); });
  };
  const auto want_dweight = [&](int64_t v, int64_t c) {
    return dot(p.T, [&](int64_t t) { return dx_at(t, v) * hidden.at(t, c); });
  };
  const auto want_dbias = [&](int64_t, int64_t v) { return dot(p.T, [&](int64_t t) { return dx_at(t, v); }); };
  compare(dhidden, want_dhidden, tolerance, "dhidden", type, isa);
  compare(dweight, want_dweight, tolerance, "dweight", type, isa);
  compare(dbias, want_dbias, tolerance, "dbias", type, isa);
}

}  // namespace

int main(int argc, char** argv) {
  const Product products[] = {
      {1, 1, 1, false, false, 0},      {7, 33, 5, false, true, 0},     {100, 41, 400, true, false, 1},
      {13, 130, 800, true, true, 0.5}, {97, 65, 385, false, false, 0}, {5, 6, 0, false, false, 2},
      {2053, 9, 3, false, true, 0},    {3, 3090, 4, false, false, 1},  {0, 5, 3, false, false, 0},
  };
  const Loss losses[] = {
      {17, 12, 37, 5, 1.0, 0.0, 3}, {9, 5, 130, 100, 0.5, 3.0, 0}, {4, 3, 1, 2, 1.0, 0.0, 0},
      {0, 4, 10, 8, 1.0, 0.0, 0},   {6, 8, 20, 4, 1.0, 2.0, 1},    {1, 1, 2, 1, 2.0, 0.0, 0},
  };
  std::vector<const char*> names(argv + 1, argv + argc);
  if (names.empty()) names.push_back("");
  for (const char* name : names) {
    const Isa isa = select_isa(name);
    for (const Product& p : products) {
      check_product<float>(p, isa, "float", 3e-5);
      check_product<double>(p, isa, "double", 1e-12);
      check_product<Bf16>(p, isa, "bfloat16", 8e-3);
    }
    for (const Loss& p : losses) {
      check_loss<float>(p, isa, "float", 2e-5);
      check_loss<double>(p, isa, "double", 1e-12);
      check_loss<Bf16>(p, isa, "bfloat16", 8e-3);
    }
    std::printf("%s: %zu cases in float, double and bfloat16\n", isa_name(isa), std::size(products) + std::size(losses));
  }
  std::printf("%d failures\n", failures);
  return failures != 0;
}
