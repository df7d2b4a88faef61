#pragma once
// What the kernels of magnitudes share: elements as bits, the walk over a chunk, sums and searches of a block.
#include "common/units.cuh"
#include "magnitude/magnitude.h"

namespace longspan::kernels::magnitude {

inline constexpr int kThreads = 512, kWarps = kThreads / 32;
inline constexpr int kBatch = 3;      // loads of 16 bytes that a thread has in flight
inline constexpr int kChunk = 61440;  // elements a block: whole batches, and less than 16 bits count
static_assert(kChunk % (kThreads * kUnit<uint16_t> * kBatch) == 0);

// ---- elements ---------------------------------------------------------------------------------------------------------

/// The value of a float16 magnitude; not-a-number keeps its bits and becomes quiet, as in the CPU's conversion.
SIMT_DEVICE float half_magnitude(uint32_t x) {
  const uint32_t exponent = x >> 10, mantissa = x & 0x3ffu;
  if (exponent == 0) return __uint2float_rn(mantissa) * 0x1p-24f;
  if (exponent == 31) return __uint_as_float(0x7f800000u | mantissa << 13 | (mantissa ? 0x400000u : 0u));
  return __uint_as_float((exponent + 112) << 23 | mantissa << 13);
}

struct Float32Bits {
  using Raw = uint32_t;
  SIMT_DEVICE static uint32_t bits(Raw x) { return x & 0x7fffffffu; }
  SIMT_DEVICE static double value(Raw x) { return double(__uint_as_float(x)); }
};
struct BFloat16Bits {
  using Raw = uint16_t;
  SIMT_DEVICE static uint32_t bits(Raw x) { return uint32_t(x & 0x7fffu) << 16; }
  SIMT_DEVICE static double value(Raw x) { return double(__uint_as_float(uint32_t(x) << 16)); }
};
struct Float16Bits {
  using Raw = uint16_t;
  SIMT_DEVICE static uint32_t bits(Raw x) { return uint32_t(x & 0x7fffu) << 16; }
  SIMT_DEVICE static double value(Raw x) { return double(half_magnitude(x & 0x7fffu)); }
};

SIMT_DEVICE double square(uint32_t bits, bool half) {
  const double value = half ? double(half_magnitude(bits >> 16)) : double(__uint_as_float(bits));
  return value * value;
}

/// Shows a block every element of a chunk: `units` to whole warps, `one` single elements at a ragged end.
template <class Raw, class Units, class One>
SIMT_DEVICE void visit(const Raw* x, int count, bool aligned, Units&& units, One&& one) {
  constexpr int kEach = kUnit<Raw>, kStride = kThreads * kEach;
  const int own = int(threadIdx.x) * kEach, warp_end = (int(threadIdx.x) / 32 + 1) * 32 * kEach;
  for (int first = 0; first < count; first += kBatch * kStride) {
    Unit<Raw> batch[kBatch];
    SIMT_UNROLL
    for (int j = 0; j < kBatch; ++j) {
      const int at = first + j * kStride + own;
      if (at + kEach > count) continue;
      if (aligned || simt::mutant(300)) {
        batch[j] = *reinterpret_cast<const Unit<Raw>*>(x + at);
      } else {
        SIMT_UNROLL
        for (int e = 0; e < kEach; ++e) batch[j].at[e] = x[at + e];
      }
    }
    SIMT_UNROLL
    for (int j = 0; j < kBatch; ++j) {
      const int begin = first + j * kStride;
      if (begin + warp_end <= count) {
        units(batch[j]);
      } else {
        const int at = begin + own, end = simt::mutant(301) && at < count ? at + kEach : min(at + kEach, count);
        for (int i = at; i < end; ++i) one(x[i]);
      }
    }
  }
}

/// Whether all elements that the warp has in this unit have the same bits.
template <class Reader>
SIMT_DEVICE bool warp_is_equal(const Unit<typename Reader::Raw>& unit, uint32_t mask) {
  const uint32_t first = Reader::bits(unit.at[0]) & mask, lead = __shfl_sync(~0u, first, 0);
  bool same = first == lead || simt::mutant(302);
  SIMT_UNROLL
  for (int e = 1; e < kUnit<typename Reader::Raw>; ++e) same &= (Reader::bits(unit.at[e]) & mask) == first;
  return __all_sync(~0u, same);
}

// ---- sums and searches of a block -------------------------------------------------------------------------------------

template <class T>
SIMT_DEVICE T warp_sum(T x) {
  SIMT_UNROLL
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
  return x;
}

/// The sum over the block's threads in a fixed order, in all of them.
template <class T>
SIMT_DEVICE T block_sum(T x) {
  SIMT_SHARED(T[kWarps], sums);
  x = warp_sum(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
  if (!simt::mutant(303)) __syncthreads();
  T total = 0;
  for (int i = 0; i < kWarps; ++i) total += sums[i];
  return total;
}

/// A place, its own count and the sum of the counts before it.
struct Place {
  int64_t at, before, here;
};

/// The first place of [0, length) at which the counts add up to `wanted`, else the last, the same in all threads of the
/// block.
template <class Count>
SIMT_DEVICE Place locate(int64_t length, int64_t wanted, Count&& count) {
  SIMT_SHARED(int64_t[kWarps], sums);
  const int lane = int(threadIdx.x) & 31, warp = int(threadIdx.x) / 32;
  int64_t first = 0, before = 0;
  while (length > 32) {
    const int64_t part = ceil_div(length, kWarps), begin = first + warp * part;
    const int64_t end = begin + part < first + length ? begin + part : first + length;
    int64_t sum = 0;
    for (int64_t i = begin + lane; i < end; i += 32) sum += count(i);
    sum = warp_sum(sum);
    if (!simt::mutant(304)) __syncthreads();  // the last round's sums were read
    if (lane == 0) sums[warp] = sum;
    __syncthreads();
    const int last = int((length - 1) / part);
    int chosen = 0;
    while (chosen < last && before + sums[chosen] < wanted) before += sums[chosen++];
    first += chosen * part;
    length = part < length - chosen * part ? part : length - chosen * part;
  }
  const int64_t here = lane < length ? int64_t(count(first + lane)) : 0;
  int64_t sum = here;
  SIMT_UNROLL
  for (int offset = 1; offset < 32; offset *= 2) {
    const int64_t other = __shfl_up_sync(~0u, sum, offset);
    if (lane >= offset) sum += other;
  }
  const uint32_t enough = __ballot_sync(~0u, before + sum >= wanted || lane == int(length) - 1);
  const int pick = __ffs(int(enough)) - 1;
  return {first + pick, before + __shfl_sync(~0u, sum - here, pick), __shfl_sync(~0u, here, pick)};
}

}  // namespace longspan::kernels::magnitude
