#pragma once
// The threads that can run, and the order in which they do.
#include <array>
#include <bit>

#include "simt/engine/machine.h"

namespace simt {

/// Seed 0 runs threads round robin in increasing order. Odd seeds pick at random. Other seeds give the warps random
/// priorities, drawn anew at every barrier, and run the first warp as far as it can go: races across warps then show
/// as whole phases in the wrong order.
class ReadyThreads {
 public:
  explicit ReadyThreads(uint64_t seed) : seed_(seed), random_(seed) {
    for (int warp = 0; warp < kMaxWarps; ++warp) priority_[warp] = uint8_t(warp);
  }
  void reseed(uint64_t seed) { *this = ReadyThreads(seed); }
  Random& random() { return random_; }

  bool empty() const { return warps_ == 0; }
  void clear() {
    warps_ = 0;
    lanes_.fill(0);
    cursor_ = 0;
  }
  void add(int thread) {
    lanes_[thread / kWarpSize] |= 1u << thread % kWarpSize;
    warps_ |= 1u << thread / kWarpSize;
  }
  /// Removes and returns the next thread.
  int take() {
    const int warp = seed_ == 0 ? next_warp() : seed_ % 2 ? pick(warps_) : first_by_priority();
    const int lane = seed_ == 0 ? next_lane(warp) : pick(lanes_[warp]);
    lanes_[warp] &= ~(1u << lane);
    if (!lanes_[warp]) warps_ &= ~(1u << warp);
    cursor_ = warp * kWarpSize + lane + 1;
    return cursor_ - 1;
  }
  void draw_priorities() {
    if (seed_ == 0 || seed_ % 2) return;
    for (int i = kMaxWarps - 1; i > 0; --i) std::swap(priority_[i], priority_[random_.below(i + 1)]);
  }

 private:
  /// The thread at or after the cursor, around the block.
  int next_warp() const {
    const int warp = cursor_ / kWarpSize;
    if (warp < kMaxWarps && lanes_[warp] >> cursor_ % kWarpSize) return warp;
    const uint32_t later = warp + 1 < kMaxWarps ? warps_ & ~0u << (warp + 1) : 0;
    return std::countr_zero(later ? later : warps_);
  }
  int next_lane(int warp) const {
    const uint32_t later = warp == cursor_ / kWarpSize ? lanes_[warp] & ~0u << cursor_ % kWarpSize : 0;
    return std::countr_zero(later ? later : lanes_[warp]);
  }
  /// A set bit, each as likely as the others.
  int pick(uint32_t bits) {
    for (uint32_t skip = random_.below(uint32_t(std::popcount(bits))); skip > 0; --skip) bits &= bits - 1;
    return std::countr_zero(bits);
  }
  int first_by_priority() const {
    for (int warp : priority_)
      if (warps_ >> warp & 1) return warp;
    return 0;
  }

  uint64_t seed_;
  Random random_;
  uint32_t warps_ = 0;
  std::array<uint32_t, kMaxWarps> lanes_{};
  std::array<uint8_t, kMaxWarps> priority_{};
  int cursor_ = 0;
};

extern ReadyThreads ready;

}  // namespace simt
