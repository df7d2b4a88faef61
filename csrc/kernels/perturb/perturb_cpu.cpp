// Perturbation and update by noise; see perturb.h.
#include <algorithm>

#include "perturb/lanes.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {
namespace {

// Elements of a step, whose noise and sums stay in the first cache, and of a task.
constexpr int kStep = 2048, kTask = 16 * kStep;
static_assert(kStep % (kSigns * kCounters) == 0 && kStep % (4 * kCounters) == 0);

struct Buffers {
  alignas(64) float noise[kStep], sum[kStep];
};

/// What a call adds up, checked and multiplied once.
struct Members {
  const NoiseSpec& noise;
  std::vector<float> weights;
  std::vector<int64_t> used;  // those of a weight that is not 0

  Members(const NoiseSpec& spec, const EsWeights& given) : noise(spec) {
    const float alpha = given.alpha ? *given.alpha : 1.f;
    for (int64_t n = 0; n < spec.members; ++n) {
      weights.push_back(alpha * given.coefficients[n]);
      if (weights.back() != 0) used.push_back(n);
    }
  }

  void row(int64_t member, uint32_t tensor_id, uint64_t first, int count, float* z) const {
    const uint64_t key = noise_key(noise.seeds[member], noise.steps[member], tensor_id);
    if (noise.distribution == Distribution::kGaussian)
      gaussian_row(first, count, noise.stream, key, z);
    else
      sign_row(first, count, noise.stream, key, z);
  }
};

/// y = keep source + weight noise, in place of the noise.
template <class S>
void add_source(const S* source, float keep, float weight, float* y, int count) {
  for (int i = 0; i < count; ++i) y[i] = keep * load_as<float>(source + i) + weight * y[i];
}

template <class S>
void store_row(const float* y, S* to, int count) {
  for (int i = 0; i < count; ++i) store_as<float>(to + i, y[i]);
}

void store_any(const float* y, void* to, DType dtype, int64_t first, int count) {
  if (!to) return;
  if (dtype == DType::kFloat32)
    store_row(y, static_cast<float*>(to) + first, count);
  else
    store_row(y, static_cast<bfloat16*>(to) + first, count);
}

/// Elements [first, first + count) of a tensor; the step begins at a multiple of 128 of the logical index, `lead` before it.
void run_step(const Members& members, const PerturbTensor& t, float keep, int64_t first, int lead, int count, Buffers& b) {
  const uint64_t logical = uint64_t(t.offset + first - lead);
  const int whole = lead + count;
  float weight = 1.f, *y = b.noise;
  if (members.used.size() == 1) {
    weight = members.weights[size_t(members.used[0])];
    members.row(members.used[0], t.tensor_id, logical, whole, y);
  } else {
    y = b.sum;
    std::fill(y, y + whole, -0.f);  // the number that any other is left alone by
    for (const int64_t n : members.used) {
      const float w = members.weights[size_t(n)];
      members.row(n, t.tensor_id, logical, whole, b.noise);
      for (int i = 0; i < whole; ++i) y[i] += w * b.noise[i];
    }
  }
  y += lead;
  if (t.source_dtype == DType::kFloat32)
    add_source(static_cast<const float*>(t.source) + first, keep, weight, y, count);
  else
    add_source(static_cast<const bfloat16*>(t.source) + first, keep, weight, y, count);
  store_any(y, t.target, t.target_dtype, first, count);
  store_any(y, t.copy, t.copy_dtype, first, count);
}

}  // namespace

void es_update(const NoiseSpec& noise, const EsWeights& weights, const std::vector<PerturbTensor>& tensors,
               const Context& context) {
  const Members members(noise, weights);
  // Steps and tasks are cut at logical indices: then no chunk of noise is made twice.
  std::vector<int64_t> first_task{0};
  for (const PerturbTensor& t : tensors)
    first_task.push_back(first_task.back() + (t.size ? ceil_div(t.offset % kSigns + t.size, kTask) : 0));
  parallel_for(context, first_task.back(), [&](int64_t task, int) {
    const auto after = std::upper_bound(first_task.begin(), first_task.end(), task);
    const size_t i = size_t(after - first_task.begin()) - 1;
    const PerturbTensor& t = tensors[i];
    const float keep = weights.decay ? 1.f - weights.decay[i] : 1.f;
    const int64_t lead = t.offset % kSigns, begin = (task - first_task[i]) * kTask;
    Buffers buffers;
    for (int64_t at = begin; at < std::min(lead + t.size, begin + kTask); at += kStep) {
      const int before = int(std::clamp<int64_t>(lead - at, 0, kStep));
      const int count = int(std::min<int64_t>(kStep, lead + t.size - at)) - before;
      if (count > 0) run_step(members, t, keep, at + before - lead, before, count, buffers);
    }
  });
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
