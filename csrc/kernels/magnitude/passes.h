#pragma once
// What one worker does with a run of elements. Bits of a magnitude are those of float32; a 16-bit magnitude fills the upper
// half. A reader has `bits`, and in the width of its elements `magnitude`, which orders alike, and `key`, the magnitude with
// such bits.
#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>

#include "common/vec.h"
#include "magnitude/magnitude.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {

struct Float32Bits {
  using Raw = uint32_t;
  static uint32_t bits(Raw x) { return x & 0x7fffffffu; }
  static int32_t magnitude(Raw x) { return int32_t(x & 0x7fffffffu); }
  static int32_t key(uint32_t bits) { return int32_t(bits); }
  static float value(Raw x) { return std::bit_cast<float>(x); }
};

struct BFloat16Bits {
  using Raw = uint16_t;
  static uint32_t bits(Raw x) { return uint32_t(x & 0x7fffu) << 16; }
  static int16_t magnitude(Raw x) { return int16_t(x & 0x7fffu); }
  static int16_t key(uint32_t bits) { return int16_t(bits >> 16); }
  static float value(Raw x) { return to_float({x}); }
};

struct Float16Bits {
  using Raw = uint16_t;
  static uint32_t bits(Raw x) { return uint32_t(x & 0x7fffu) << 16; }
  static int16_t magnitude(Raw x) { return int16_t(x & 0x7fffu); }
  static int16_t key(uint32_t bits) { return int16_t(bits >> 16); }
  /// Not every compiler has a type for it: the exponent is moved by a product, which is exact, denormals too.
  static float value(Raw x) {
    const uint32_t magnitude = uint32_t(x & 0x7fffu) << 13, sign = uint32_t(x & 0x8000u) << 16;
    const float scaled = std::bit_cast<float>(magnitude) * 0x1p112f;
    const bool finite = (x & 0x7c00u) != 0x7c00u;
    return std::bit_cast<float>((finite ? std::bit_cast<uint32_t>(scaled) : magnitude | 0x7f800000u) | sign);
  }
};

/// Calls `body` with the reader of a dtype.
template <class Body>
auto with_reader(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::kBFloat16: return body(BFloat16Bits{});
    case DType::kFloat16: return body(Float16Bits{});
    default: return body(Float32Bits{});
  }
}

inline constexpr int kRun = 64;      // elements whose place is decided at once
inline constexpr int kBlock = 1024;  // elements that are in the first-level cache for both loops
inline constexpr int kSums = 16;     // partial sums of squares, a fixed number so that every instruction set adds alike
inline constexpr int64_t kCounters =
    2 * kUpperBins;  // of a worker: two histograms in turns, so that equal neighbours do not wait

/// Elements with bits in [low, high] are counted, at (bits - low) >> shift.
struct Range {
  uint32_t low, high;
  int shift;
  int64_t bins() const { return int64_t((high - low) >> shift) + 1; }
  bool everything() const { return low == 0 && high == 0x7fffffffu; }
  /// The upper bins [first, last].
  static Range upper(uint32_t first, uint32_t last) { return {first << 16, last << 16 | 0xffffu, 16}; }
  static Range upper() { return upper(0, uint32_t(kUpperBins) - 1); }
  /// The magnitudes of one upper bin.
  static Range lower(uint32_t bin) { return {bin << 16, bin << 16 | 0xffffu, 0}; }
};

/// What a pass adds up beside its counts: elements above the range, their squares, and the squares of all.
struct Sums {
  int64_t above = 0;
  uint32_t highest = 0;  // bits of the largest magnitude
  double above_squares = 0, squares = 0;
};

/// Which sums of squares a pass needs.
enum class Squares : int8_t { kNone = 0, kAll = 1, kAbove = 2, kBoth = 3 };

/// The sum of value^2.
inline double sum_of_squares(const float* values, int n) {
  constexpr int kVecs = kSums / kLanes<double>;
  Vec<double> sums[kVecs] = {};
  const auto add = [&](const float* x) {
    for (int j = 0; j < kVecs; ++j) {
      double wide[kLanes<double>];  // an array, which GCC converts in one instruction
      for (int lane = 0; lane < kLanes<double>; ++lane) wide[lane] = x[j * kLanes<double> + lane];
      const Vec<double> value = load(wide);
      sums[j] += value * value;
    }
  };
  int i = 0;
  for (; i + kSums <= n; i += kSums) add(values + i);
  if (i < n) {
    float rest[kSums] = {};
    std::copy(values + i, values + n, rest);
    add(rest);
  }
  double sum = 0;
  for (int j = 0; j < kSums; ++j) sum += sums[j / kLanes<double>][j % kLanes<double>];
  return sum;
}

/// The sum of the squares of elements [0, n), at most kBlock.
template <class Reader>
double squares_of(const typename Reader::Raw* x, int n) {
  if constexpr (std::is_same_v<Reader, Float32Bits>) return sum_of_squares(reinterpret_cast<const float*>(x), n);
  float values[kBlock];
  for (int i = 0; i < n; ++i) values[i] = Reader::value(x[i]);
  return sum_of_squares(values, n);
}

/// Adds the squares of elements [0, n), at most kBlock.
template <class Reader>
void add_squares(const typename Reader::Raw* x, int n, uint32_t high, Squares which, Sums& sums) {
  float values[kBlock];
  if (int(which) & int(Squares::kAll)) sums.squares += squares_of<Reader>(x, n);
  if (int(which) & int(Squares::kAbove)) {
    const auto limit = Reader::key(high);
    for (int i = 0; i < n; ++i) values[i] = Reader::magnitude(x[i]) > limit ? Reader::value(x[i]) : 0.f;
    sums.above_squares += sum_of_squares(values, n);
  }
}

/// Which of kRun elements are in the range, a bit each.
template <class Reader>
uint64_t members(const typename Reader::Raw* x, const Range& range, Sums& sums) {
  alignas(64) uint8_t inside[kRun];
  const auto low = Reader::key(range.low), high = Reader::key(range.high);
  int32_t higher = 0;
  auto highest = Reader::key(0);
  for (int j = 0; j < kRun; ++j) {
    const auto key = Reader::magnitude(x[j]);
    highest = std::max(highest, key);
    inside[j] = uint8_t(key >= low) & uint8_t(key <= high);
    higher += key > high;
  }
  sums.above += higher, sums.highest = std::max(sums.highest, Reader::bits(typename Reader::Raw(highest)));
  uint64_t out = 0;
  for (int j = 0; j < kRun; j += 8) {
    uint64_t bytes;
    std::memcpy(&bytes, inside + j, 8);
    out |= (bytes * 0x0102040810204080u >> 56) << j;  // the low bits of eight bytes
  }
  return out;
}

/// Counts the elements of a range that holds few of them.
template <class Reader>
void count_some(const typename Reader::Raw* x, int n, const Range& range, uint32_t* counters, Sums& sums) {
  int i = 0;
  for (; i + kRun <= n; i += kRun)
    for (uint64_t found = members<Reader>(x + i, range, sums); found; found &= found - 1)
      ++counters[(Reader::bits(x[i + std::countr_zero(found)]) - range.low) >> range.shift];
  for (; i < n; ++i) {
    const uint32_t bits = Reader::bits(x[i]);
    sums.highest = std::max(sums.highest, bits);
    if (bits > range.high)
      ++sums.above;
    else if (bits >= range.low)
      ++counters[(bits - range.low) >> range.shift];
  }
}

/// Counts all elements by their upper bits, into two histograms; returns the upper bits of the largest.
template <class Reader>
uint32_t count_all(const typename Reader::Raw* x, int n, uint32_t* counters) {
  uint32_t *even = counters, *odd = counters + kUpperBins;
  uint16_t keys[kRun];
  uint16_t highest = 0;
  int i = 0;
  for (; i + kRun <= n; i += kRun) {
    uint16_t most = 0;
    for (int j = 0; j < kRun; ++j) {
      keys[j] = uint16_t(Reader::bits(x[i + j]) >> 16);
      most = std::max(most, keys[j]);
    }
    if (!most) {  // rows without a gradient are frequent, and one counter would wait for itself
      even[0] += kRun;
      continue;
    }
    highest = std::max(highest, most);
    for (int j = 0; j < kRun; j += 2) ++even[keys[j]], ++odd[keys[j + 1]];
  }
  for (; i < n; ++i) {
    const auto key = uint16_t(Reader::bits(x[i]) >> 16);
    highest = std::max(highest, key);
    ++even[key];
  }
  return uint32_t(highest) << 16;
}

/// One pass: counts into counters [kCounters], of which those of a range of everything are two histograms.
template <class Reader>
Sums count(const typename Reader::Raw* x, int64_t n, const Range& range, Squares which, uint32_t* counters) {
  Sums sums;
  for (int64_t first = 0; first < n; first += kBlock) {
    const int here = int(std::min<int64_t>(kBlock, n - first));
    add_squares<Reader>(x + first, here, range.high, which, sums);
    if (range.everything())
      sums.highest = std::max(sums.highest, count_all<Reader>(x + first, here, counters));
    else
      count_some<Reader>(x + first, here, range, counters, sums);
  }
  return sums;
}

/// How many of kBlock elements, or fewer, have this magnitude.
template <class Reader>
int count_equal(const typename Reader::Raw* x, int n, uint32_t bits) {
  const auto wanted = Reader::key(bits);
  int found = 0;
  for (int i = 0; i < n; ++i) found += Reader::magnitude(x[i]) == wanted;
  return found;
}

/// One past the place of the `wanted`-th element with these bits, or -1 after taking all that there are from `wanted`.
template <class Reader>
int64_t place_of(const typename Reader::Raw* x, int64_t n, uint32_t bits, int64_t& wanted) {
  for (int64_t first = 0; first < n; first += kBlock) {
    const int here = int(std::min<int64_t>(kBlock, n - first)), found = count_equal<Reader>(x + first, here, bits);
    if (found < wanted) {
      wanted -= found;
      continue;
    }
    int64_t i = first;
    while (true)
      if (Reader::bits(x[i++]) == bits && --wanted == 0) return i;
  }
  return -1;
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
