// One pass of a step over many tensors: gradient, mask, moments, weight; see update.h.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "common/philox.h"
#include "common/vec.h"
#include "update/update.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {
namespace {

constexpr int64_t kTask = 1 << 17;  // elements that a worker claims at once
constexpr int kBlock = 512;         // elements whose mask and wide weight lie in the first-level cache

/// What a block needs beside the tensors.
struct Block {
  float weight[kBlock];
  int32_t keep[kBlock];
};

/// What masked elements do, or that there are none: then the modes are one.
enum class Masked : int8_t { kNone, kGradient, kUpdate, kFreeze };

// ---- masks: keep[i] is -1 or 0 ----------------------------------------------------------------------------------------

/// Elements above `bits`, and those equal to it if `ties`.
template <class G>
void keep_above(const G* g, int n, int32_t bits, bool ties, int32_t* keep) {
  const int32_t limit = ties ? bits - 1 : bits;
  for (int i = 0; i < n; ++i) {
    const float x = load_as<float>(g + i);
    int32_t own;
    std::memcpy(&own, &x, 4);
    keep[i] = -int32_t((own & 0x7fffffff) > limit);
  }
}

void keep_bytes(const uint8_t* mask, int n, int32_t* keep) {
  for (int i = 0; i < n; ++i) keep[i] = -int32_t(mask[i] != 0);
}

void keep_bits(const uint8_t* mask, int64_t first, int n, int32_t* keep) {
  for (int i = 0; i < n; ++i) keep[i] = -int32_t(mask[(first + i) >> 3] >> ((first + i) & 7) & 1);
}

/// The mask of elements [first, first + n) of a tensor.
template <class G>
void fill_mask(const UpdateSpec& spec, const UpdateTensor& x, const G* g, int64_t first, int n, int32_t* keep) {
  switch (x.kind) {
    case MaskKind::kAll: std::fill_n(keep, n, -1); return;
    case MaskKind::kNone: std::fill_n(keep, n, 0); return;
    case MaskKind::kBits: return keep_bits(x.mask, first, n, keep);
    case MaskKind::kThreshold: {
      // Equal ones are kept up to the cut: the block falls into two parts.
      const int64_t number = x.number + first;
      const int ties = int(std::clamp<int64_t>(spec.cut[x.group] - number, 0, n));
      keep_above(g, ties, spec.bits[x.group], true, keep);
      return keep_above(g + ties, n - ties, spec.bits[x.group], false, keep + ties);
    }
    case MaskKind::kRows:
    case MaskKind::kColumns:
      for (int i = 0; i < n;) {
        const int64_t row = (first + i) / x.columns, column = (first + i) % x.columns;
        const int run = int(std::min<int64_t>(n - i, x.columns - column));
        if (x.kind == MaskKind::kRows)
          std::fill_n(keep + i, run, x.mask[row] ? -1 : 0);
        else
          keep_bytes(x.mask + column, run, keep + i);
        i += run;
      }
  }
}

// ---- steps ------------------------------------------------------------------------------------------------------------

/// a where keep is -1, b where it is 0; by bits, since a choice may become a masked store, which is slow.
inline float chosen(int32_t keep, float a, float b) {
  return std::bit_cast<float>((std::bit_cast<int32_t>(a) & keep) | (std::bit_cast<int32_t>(b) & ~keep));
}

/// What element i adds to the moments.
template <Masked masked, class G>
inline float gradient_of(const G* g, float factor, const int32_t* keep, int i) {
  const float whole = load_as<float>(g + i) * factor;
  return masked == Masked::kGradient ? chosen(keep[i], whole, 0.f) : whole;
}

/// One block of AdamW.
struct AdamW {
  template <Masked masked, class G>
  static void run(const float* s, int n, const G* g, float factor, const int32_t* keep, float* m, float* v, float* p) {
    const float decay = s[0], beta1 = s[1], rest1 = s[2], beta2 = s[3], rest2 = s[4], rate = s[5], root = s[6], eps = s[7];
#pragma GCC ivdep
    for (int i = 0; i < n; ++i) {
      const float gradient = gradient_of<masked>(g, factor, keep, i);
      const float first = beta1 * m[i] + rest1 * gradient;
      const float second = beta2 * v[i] + rest2 * (gradient * gradient);
      const float decayed = p[i] * decay;
      const float moved = decayed - rate * (first / (std::sqrt(second) / root + eps));
      m[i] = masked == Masked::kFreeze ? chosen(keep[i], first, m[i]) : first;
      v[i] = masked == Masked::kFreeze ? chosen(keep[i], second, v[i]) : second;
      p[i] = masked == Masked::kFreeze   ? chosen(keep[i], moved, p[i])
             : masked == Masked::kUpdate ? chosen(keep[i], moved, decayed)
                                         : moved;
    }
  }
};

/// One block of SGD; without a buffer `b` is null.
struct Sgd {
  template <Masked masked, class G>
  static void run(const float* s, int n, const G* g, float factor, const int32_t* keep, float* b, float*, float* p) {
    const float rate = s[0], momentum = s[1], decay = s[2];
#pragma GCC ivdep
    for (int i = 0; i < n; ++i) {
      const float whole = gradient_of<masked>(g, factor, keep, i) + decay * p[i];
      const float step = b ? momentum * b[i] + whole : whole;
      const float moved = p[i] - rate * step;
      if (b) b[i] = masked == Masked::kFreeze ? chosen(keep[i], step, b[i]) : step;
      p[i] = masked == Masked::kNone || masked == Masked::kGradient ? moved : chosen(keep[i], moved, p[i]);
    }
  }
};

template <class Step, class G>
void step(const UpdateSpec& spec, const UpdateTensor& x, MaskKind kind, int64_t first, int n, const G* g, float factor,
          const int32_t* keep, float* p) {
  float *one = x.first ? x.first + first : nullptr, *two = x.second ? x.second + first : nullptr;
  const auto run = [&]<Masked masked>() { Step::template run<masked>(spec.scalars, n, g, factor, keep, one, two, p); };
  if (kind == MaskKind::kAll) return run.template operator()<Masked::kNone>();
  switch (spec.mode) {
    case MaskMode::kGradient: return run.template operator()<Masked::kGradient>();
    case MaskMode::kUpdate: return run.template operator()<Masked::kUpdate>();
    case MaskMode::kFreeze: return run.template operator()<Masked::kFreeze>();
  }
}

// ---- storing ----------------------------------------------------------------------------------------------------------

void store_nearest(const float* p, int n, bfloat16* out) {
  for (int i = 0; i < n; ++i) out[i] = to_bfloat16(p[i]);
}

/// Rounds up with the probability of what is cut off. Two bytes of Philox an element, so blocks begin at multiples of 8.
void store_stochastic(const float* p, int n, int64_t first, uint32_t tensor, uint64_t seed, bfloat16* out) {
  for (int i = 0; i < n; i += 8) {
    const PhiloxWords random = philox_words(uint64_t(first + i) / 8, tensor, seed);
    for (int j = 0; j < 8 && i + j < n; ++j) {
      uint32_t bits;
      std::memcpy(&bits, p + i + j, 4);
      const uint32_t part = random.word[j / 2] >> (j % 2 * 16) & 0xffffu;
      const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
      out[i + j] = finite ? bfloat16{uint16_t((bits + part) >> 16)} : to_bfloat16(p[i + j]);
    }
  }
}

/// Elements [begin, end) of a tensor, masked as `kind` says.
template <class Step, class G>
void run_blocks(const UpdateSpec& spec, const UpdateTensor& x, int64_t tensor, MaskKind kind, int64_t begin, int64_t end) {
  const float factor = spec.factors[tensor];
  auto* gradient = static_cast<G*>(x.grad);
  alignas(64) Block block;
  for (int64_t first = begin; first < end; first += kBlock) {
    const int n = int(std::min<int64_t>(kBlock, end - first));
    if (kind != MaskKind::kAll) fill_mask(spec, x, gradient + first, first, n, block.keep);
    const bool wide = x.param_dtype == DType::kFloat32;
    auto* narrow = static_cast<bfloat16*>(x.param) + first;
    float* p = wide ? static_cast<float*>(x.param) + first : block.weight;
    if (!wide)
      for (int i = 0; i < n; ++i) p[i] = to_float(narrow[i]);
    step<Step>(spec, x, kind, first, n, gradient + first, factor, block.keep, p);
    if (!wide) {
      // A frozen weight is its own rounding: nearest and stochastic leave it as it is.
      spec.stochastic ? store_stochastic(p, n, first, uint32_t(tensor), spec.seed, narrow) : store_nearest(p, n, narrow);
    }
    if (x.copy) store_nearest(p, n, static_cast<bfloat16*>(x.copy) + first);
    if (spec.zero_grad) std::memset(gradient + first, 0, n * sizeof(G));
  }
}

template <class Step, class G>
void run_part(const UpdateSpec& spec, const UpdateTensor& x, int64_t tensor, int64_t begin, int64_t end) {
  const float factor = spec.factors[tensor];
  const bool frozen = x.kind == MaskKind::kNone && spec.mode == MaskMode::kFreeze;
  auto* gradient = static_cast<G*>(x.grad);
  const auto leave = [&](int64_t first, int64_t last) {
    if (spec.zero_grad) std::memset(gradient + first, 0, (last - first) * sizeof(G));
  };
  if (factor != factor || frozen) return leave(begin, end);
  // Rows are told apart before they are touched; rounding by counters of 8 elements and copies go the general way.
  const bool by_row = x.kind == MaskKind::kRows && spec.mode == MaskMode::kFreeze && !x.copy && !spec.stochastic;
  if (!by_row) return run_blocks<Step, G>(spec, x, tensor, x.kind, begin, end);
  for (int64_t first = begin; first < end;) {
    const int64_t row = first / x.columns, last = std::min(end, (row + 1) * x.columns);
    if (x.mask[row])
      run_blocks<Step, G>(spec, x, tensor, MaskKind::kAll, first, last);
    else
      leave(first, last);
    first = last;
  }
}

template <class Step>
void run(const UpdateSpec& spec, const std::vector<UpdateTensor>& tensors, const Context& context) {
  struct Task {
    int64_t tensor, begin;
  };
  std::vector<Task> tasks;
  for (size_t i = 0; i < tensors.size(); ++i)
    for (int64_t begin = 0; begin < tensors[i].size; begin += kTask) tasks.push_back({int64_t(i), begin});
  parallel_for(context, int64_t(tasks.size()), [&](int64_t index, int) {
    const auto [tensor, begin] = tasks[index];
    const UpdateTensor& x = tensors[tensor];
    const int64_t end = std::min(x.size, begin + kTask);
    if (x.grad_dtype == DType::kFloat32)
      run_part<Step, float>(spec, x, tensor, begin, end);
    else
      run_part<Step, bfloat16>(spec, x, tensor, begin, end);
  });
}

}  // namespace

void masked_adamw(const UpdateSpec& spec, const std::vector<UpdateTensor>& tensors, const Context& context) {
  run<AdamW>(spec, tensors, context);
}

void masked_sgd(const UpdateSpec& spec, const std::vector<UpdateTensor>& tensors, const Context& context) {
  run<Sgd>(spec, tensors, context);
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
