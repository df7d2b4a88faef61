// Perturbation and update by noise against one element after the other, bit for bit, and the noise against its definition
// in double. Built natively under the address and undefined-behaviour sanitizers and for aarch64 under an emulator: the
// bits are the same there. Exits 0 when every case holds.
#include <bit>
#include <cmath>
#include <cstdio>
#include <vector>

#include "check.h"
#include "perturb/noise.h"

namespace {

using namespace longspan::check;

int failures = 0;

/// The arithmetic of noise.h on numbers; through memory, so that no compiler fuses a product with a sum.
struct PlainArithmetic {
  using F = float;
  using U = uint32_t;
  static F mul(F a, F b) {
    volatile F product = a * b;
    return product;
  }
  static F add(F a, F b) {
    volatile F sum = a + b;
    return sum;
  }
  static F sqrt(F x) { return std::sqrt(x); }
  static F splat(float x) { return x; }
  static F select(U mask, F a, F b) { return mask ? a : b; }
  static F from_signed(U x) { return F(int32_t(x)); }
  static U bits(F x) { return std::bit_cast<U>(x); }
  static F from_bits(U x) { return std::bit_cast<F>(x); }
  static U sign_mask(U x) { return U(int32_t(x) >> 31); }
};

struct Case {
  Distribution distribution;
  int64_t size, offset;
  std::vector<float> coefficients;
  float alpha, decay;
};

constexpr uint32_t kStream = 9, kTensor = 0x80000001u;

/// z of one element, and the same by the definition in double.
float noise(const Case& c, int64_t seed, int64_t step, uint64_t index, double* exact) {
  const uint64_t key = noise_key(seed, step, kTensor);
  if (c.distribution == Distribution::kRademacher) {
    const PhiloxWords x = philox_words(index / kSigns, kStream, key);
    *exact = x.word[index / 32 % 4] >> index % 32 & 1 ? -1 : 1;
    return float(*exact);
  }
  const PhiloxWords x = philox_words(index / 4, kStream, key);
  const int pair = int(index % 4 / 2) * 2;
  float z[2];
  gaussian_pair<PlainArithmetic>(x.word[pair], x.word[pair + 1], z[0], z[1]);
  const double radius = std::sqrt(-2 * std::log((x.word[pair] + 0.5) / 4294967296.0));
  const double angle = 2 * M_PI * ((x.word[pair + 1] + 0.5) / 4294967296.0);
  *exact = radius * (index % 2 ? std::sin(angle) : std::cos(angle));
  return z[index % 2];
}

template <class S>
void check(const Case& c, Isa isa, const char* type) {
  using A = PlainArithmetic;
  Runner runner{3, {}};
  std::vector<S> x(size_t(c.size)), wanted(x.size());
  fill(x, 7);
  for (size_t i = 0; i < x.size(); i += 3) x[i] = from_double<S>(-0.0);  // which nothing but noise may change
  std::vector<float> copy(x.size(), NAN);
  const auto members = int64_t(c.coefficients.size());
  std::vector<int64_t> seeds, steps;
  for (int64_t n = 0; n < members; ++n) seeds.push_back(n * 0x123456789abcdll - 5), steps.push_back(n);
  double worst = 0;
  std::vector<float> wanted_copy;
  for (int64_t i = 0; i < c.size; ++i) {
    float sum = -0.f;
    for (int64_t n = 0; n < members; ++n) {
      double exact;
      const float z = noise(c, seeds[size_t(n)], steps[size_t(n)], uint64_t(c.offset + i), &exact);
      const float weight = A::mul(c.alpha, c.coefficients[size_t(n)]);
      worst = std::max(worst, std::abs(double(z) - exact));
      if (weight != 0) sum = A::add(sum, A::mul(weight, z));
    }
    const float y = A::add(A::mul(A::add(1.f, -c.decay), float(to_double(x[size_t(i)]))), sum);
    wanted[size_t(i)] = from_double<S>(y), wanted_copy.push_back(y);
  }
  const std::vector<PerturbTensor> tensors{
      {x.data(), x.data(), copy.data(), kDType<S>, kDType<S>, DType::kFloat32, c.size, c.offset, kTensor}};
  es_update_cpu({c.distribution, kStream, seeds.data(), steps.data(), members}, {c.coefficients.data(), &c.alpha, &c.decay},
                tensors, runner.context(isa));
  const auto same = [](const auto& a, const auto& b) {
    return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof a[0]) == 0;
  };
  if (same(x, wanted) && same(copy, wanted_copy) && worst < 1e-6) return;
  std::printf("FAILED %s %s of %lld elements from %lld: bits or accuracy (%.3g)\n", isa_name(isa), type,
              static_cast<long long>(c.size), static_cast<long long>(c.offset), worst);
  ++failures;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<Case> cases;
  for (const Distribution d : {Distribution::kGaussian, Distribution::kRademacher}) {
    cases.push_back({d, 1, 0, {1.f}, 1.f, 0.f});
    cases.push_back({d, 5000, 3, {0.3f}, -0.7f, 0.1f});
    cases.push_back({d, 40003, (int64_t(1) << 41) + 130, {1.f, -2.f, 0.f, 0.1f}, 0.01f, 0.25f});
    cases.push_back({d, 2048, 2047, {0.f}, 1.f, 0.f});
    cases.push_back({d, 0, 5, {1.f}, 1.f, 0.f});
  }
  std::vector<const char*> names(argv + 1, argv + argc);
  if (names.empty()) names.push_back("");
  for (const char* name : names) {
    const Isa isa = select_isa(name);
    for (const Case& c : cases) {
      check<float>(c, isa, "float");
      check<Bf16>(c, isa, "bfloat16");
    }
    std::printf("%s: %zu cases in float and bfloat16\n", isa_name(isa), cases.size());
  }
  std::printf("%d failures\n", failures);
  return failures != 0;
}
