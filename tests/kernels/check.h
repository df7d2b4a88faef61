#pragma once
// What the check programs share: a context without torch or Python, storage types, and reproducible values.
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

#include "common/context.h"

namespace longspan::check {

using namespace longspan::kernels;

/// Threads that claim tasks from a counter, and scratch of exactly the size that was asked for, filled with NaN: what is
/// read before it is written shows.
struct Runner {
  int workers;
  std::vector<std::unique_ptr<char[]>> blocks;

  static void run(void* self, int64_t tasks, void (*task)(void*, int64_t, int), void* context) {
    std::atomic<int64_t> next{0};
    std::vector<std::thread> threads;
    for (int w = 0; w < static_cast<Runner*>(self)->workers; ++w)
      threads.emplace_back([&, w] {
        for (int64_t i = next++; i < tasks; i = next++) task(context, i, w);
      });
    for (auto& thread : threads) thread.join();
  }
  static void* get(void* self, int64_t bytes) {
    auto& blocks = static_cast<Runner*>(self)->blocks;
    blocks.emplace_back(new char[size_t(bytes) + 64]);
    auto address = reinterpret_cast<uintptr_t>(blocks.back().get());
    char* aligned = blocks.back().get() + (64 - address % 64) % 64;
    std::memset(aligned, 0xff, size_t(bytes));
    return aligned;
  }
  Context context(Isa isa) { return {{this, workers, run}, {}, {this, get}, isa}; }
};

struct Bf16 {
  uint16_t bits;
};
inline double to_double(float x) { return x; }
inline double to_double(double x) { return x; }
inline double to_double(Bf16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}
template <class S>
S from_double(double x) {
  if constexpr (std::is_same_v<S, Bf16>) {
    const float f = float(x);
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
  } else {
    return S(x);
  }
}
template <class S>
constexpr DType kDType = std::is_same_v<S, double>  ? DType::kFloat64
                         : std::is_same_v<S, float> ? DType::kFloat32
                                                    : DType::kBFloat16;

/// Values in [-1, 1) that depend on the seed alone.
template <class S>
void fill(std::vector<S>& data, uint32_t seed) {
  uint64_t state = seed * 2654435761u + 1;
  for (S& x : data) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    x = from_double<S>(double(int64_t(state >> 33) - (1ll << 30)) / double(1ll << 30));
  }
}

}  // namespace longspan::check
