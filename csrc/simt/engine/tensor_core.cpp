// mma.sync m16n8k16 on 16-bit operands with float accumulation.
#include "simt/engine/tensor_core.h"

#include <bit>
#include <vector>

#include "simt/engine/machine.h"

namespace simt {
namespace {

constexpr int kRows = 16, kColumns = 8, kDepth = 16;

float from_bfloat16(uint32_t bits) { return std::bit_cast<float>(bits << 16); }

/// All halves as floats.
const std::vector<float>& half_table() {
  static const std::vector<float> table = [] {
    std::vector<float> values(1 << 16);
    for (uint32_t bits = 0; bits < values.size(); ++bits) values[bits] = __half2float(std::bit_cast<__half>(uint16_t(bits)));
    return values;
  }();
  return table;
}

struct Tile {
  float a[kRows][kDepth], b[kDepth][kColumns], d[kRows][kColumns];
};

/// Fragments: PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".
template <class Decode>
void load(Tile& tile, void* const* lanes, Decode&& decode) {
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const MmaLane& own = *static_cast<const MmaLane*>(lanes[lane]);
    const int group = lane / 4, first = lane % 4 * 2;
    for (int i = 0; i < 8; ++i) {
      const int row = group + (i / 2 % 2) * 8, column = first + i % 2 + i / 4 * 8;
      tile.a[row][column] = decode(own.a[i / 2] >> 16 * (i % 2) & 0xffff);
    }
    for (int i = 0; i < 4; ++i) tile.b[first + i % 2 + i / 2 * 8][group] = decode(own.b[i / 2] >> 16 * (i % 2) & 0xffff);
    for (int i = 0; i < 4; ++i) tile.d[group + i / 2 * 8][first + i % 2] = own.d[i];
  }
}

}  // namespace

void run_mma(void* const* lanes) {
  for (int lane = 0; lane < kWarpSize; ++lane)
    if (!lanes[lane]) return;  // reported
  Tile tile;
  if (static_cast<const MmaLane*>(lanes[0])->type == MmaType::kBFloat16)
    load(tile, lanes, from_bfloat16);
  else
    load(tile, lanes, [&half = half_table()](uint32_t bits) { return half[bits]; });
  // Products of 16-bit operands are exact in float; the order of the sums on the device is not specified.
  for (int row = 0; row < kRows; ++row)
    for (int k = 0; k < kDepth; ++k)
      for (int column = 0; column < kColumns; ++column) tile.d[row][column] += tile.a[row][k] * tile.b[k][column];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const MmaLane& own = *static_cast<const MmaLane*>(lanes[lane]);
    for (int i = 0; i < 4; ++i) own.d[i] = tile.d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
  }
  ++machine.statistics.mma;
}

float ex2(float x) {
  const auto flush = [](float value) { return std::fabs(value) < 0x1p-126f ? std::copysign(0.0f, value) : value; };
  return flush(std::exp2(flush(x)));
}

}  // namespace simt
