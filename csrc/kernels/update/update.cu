// One pass of a step over many tensors on CUDA; see update.h. A thread has runs of 8 elements: 16 bytes of 16-bit types, one
// counter of random bits, one byte of a bit mask. Every operation is rounded by itself, so that results are those of the
// CPU.
#include <stdexcept>
#include <string>

#include "common/convert.cuh"
#include "common/multi_tensor.cuh"
#include "common/philox.h"
#include "update/update.h"

namespace longspan::kernels {
namespace {

constexpr int kThreads = 256, kRun = 8, kPasses = 4, kChunk = kThreads * kRun * kPasses;
constexpr int kBlocks = 3;  // on a multiprocessor: their loads cover the memory

struct Extra {
  int64_t columns, number;
  int32_t group, index;  // index: of the tensor in the call
  DType param, grad, copy;
  MaskKind kind;
  bool aligned;  // all arrays start on 16 bytes
};
enum Slot { kParam, kGrad, kFirst, kSecond, kCopy, kMask, kSlots };
using Table = TensorTable<kSlots, Extra>;

template <class S>
struct alignas(kRun * sizeof(S) < 16 ? kRun * sizeof(S) : 16) Run {
  S at[kRun];
};

/// A thread's elements [first, first + kRun) of a tensor; `whole`: all are inside, and arrays may be read 16 bytes at a
/// time.
struct Range {
  int64_t first, size;
  bool whole;
};

template <class S>
SIMT_DEVICE void load_run(const void* from, const Range& at, float (&to)[kRun]) {
  const S* x = static_cast<const S*>(from) + at.first;
  if (at.whole) {
    const Run<S> run = *reinterpret_cast<const Run<S>*>(x);
    SIMT_UNROLL
    for (int e = 0; e < kRun; ++e) to[e] = to_float(run.at[e]);
    return;
  }
  SIMT_UNROLL
  for (int e = 0; e < kRun; ++e) to[e] = at.first + e < at.size || simt::mutant(330) ? to_float(x[e]) : 0.f;
}
SIMT_DEVICE void load_run(const void* from, DType dtype, const Range& at, float (&to)[kRun]) {
  if (dtype == DType::kFloat32) return load_run<float>(from, at, to);
  if (dtype == DType::kBFloat16) return load_run<__nv_bfloat16>(from, at, to);
  load_run<__half>(from, at, to);
}

/// Stores bit patterns of a type of the size of S.
template <class S>
SIMT_DEVICE void store_run(void* to, const Range& at, const S (&from)[kRun]) {
  S* y = static_cast<S*>(to) + at.first;
  if (at.whole) {
    Run<S> run;
    SIMT_UNROLL
    for (int e = 0; e < kRun; ++e) run.at[e] = from[e];
    *reinterpret_cast<Run<S>*>(y) = run;
    return;
  }
  SIMT_UNROLL
  for (int e = 0; e < kRun; ++e)
    if (at.first + e < at.size || simt::mutant(331)) y[e] = from[e];
}

/// To nearest even; not-a-number keeps its upper bits, as on the CPU.
SIMT_DEVICE uint16_t nearest_bfloat16(float x) {
  const uint32_t bits = __float_as_uint(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t(bits >> 16 | 0x40u);
  return uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
SIMT_DEVICE uint16_t nearest_half(float x) {
  const __half half = __float2half_rn(x);
  uint16_t bits;
  memcpy(&bits, &half, sizeof bits);
  return bits;
}

SIMT_DEVICE void store_nearest(void* to, DType dtype, const Range& at, const float (&from)[kRun]) {
  if (dtype == DType::kFloat32) return store_run(to, at, from);
  uint16_t bits[kRun];
  SIMT_UNROLL
  for (int e = 0; e < kRun; ++e) bits[e] = dtype == DType::kBFloat16 ? nearest_bfloat16(from[e]) : nearest_half(from[e]);
  store_run(to, at, bits);
}

/// Rounds up with the probability of what is cut off, by two bytes of the run's random words an element.
SIMT_DEVICE void store_stochastic(void* to, uint32_t tensor, uint64_t seed, const Range& at, const float (&from)[kRun]) {
  const PhiloxWords random = philox_words(uint64_t(at.first) / kRun, simt::mutant(332) ? 0u : tensor, seed);
  uint16_t bits[kRun];
  SIMT_UNROLL
  for (int e = 0; e < kRun; ++e) {
    const uint32_t x = __float_as_uint(from[e]), part = random.word[e / 2] >> (e % 2 * 16) & 0xffffu;
    const bool finite = (x & 0x7f800000u) != 0x7f800000u || simt::mutant(333);
    bits[e] = finite ? uint16_t((x + part) >> 16) : nearest_bfloat16(from[e]);
  }
  store_run(to, at, bits);
}

SIMT_DEVICE void store_zeros(void* to, DType dtype, const Range& at) {
  if (dtype == DType::kFloat32) {
    const uint32_t zeros[kRun] = {};
    return store_run(to, at, zeros);
  }
  const uint16_t zeros[kRun] = {};
  store_run(to, at, zeros);
}

/// Bit e is whether element first + e is kept; `gradient` is as it was loaded. Bits past the end may be anything.
SIMT_DEVICE uint32_t kept_bits(const UpdateSpec& spec, const Extra& tensor, const uint8_t* mask, const Range& at,
                               const float (&gradient)[kRun]) {
  uint32_t keep = 0;
  switch (tensor.kind) {
    case MaskKind::kAll: return 0xffu;
    case MaskKind::kNone: return 0u;
    case MaskKind::kBits: return mask[at.first / kRun];
    case MaskKind::kThreshold: {
      const int32_t bits = spec.bits[tensor.group];
      const int64_t ties = spec.cut[tensor.group] - (simt::mutant(334) ? 0 : tensor.number) - at.first;
      SIMT_UNROLL
      for (int e = 0; e < kRun; ++e) {
        const int32_t own = int32_t(__float_as_uint(gradient[e]) & 0x7fffffffu);
        keep |= uint32_t(own > bits || (own == bits && (simt::mutant(335) ? e <= ties : e < ties))) << e;
      }
      return keep;
    }
    default: break;
  }
  int64_t row = at.first / tensor.columns, column = at.first - row * tensor.columns;
  SIMT_UNROLL
  for (int e = 0; e < kRun; ++e) {
    if (at.first + e < at.size) keep |= uint32_t(mask[tensor.kind == MaskKind::kRows ? row : column] != 0) << e;
    if (++column == tensor.columns && !simt::mutant(336)) column = 0, ++row;
  }
  return keep;
}

/// An element's state and gradient; steps set the new state of what is kept and of what is not.
struct Element {
  float p, m, v;
};

struct AdamW {
  static constexpr bool kTwo = true;  // moments
  float decay, beta1, rest1, beta2, rest2, rate, root, eps;

  SIMT_DEVICE explicit AdamW(const float* s)
      : decay(s[0]), beta1(s[1]), rest1(s[2]), beta2(s[3]), rest2(s[4]), rate(s[5]), root(s[6]), eps(s[7]) {}

  SIMT_DEVICE Element operator()(const Element& x, float g, bool, bool moves) const {
    const float first = __fadd_rn(__fmul_rn(beta1, x.m), __fmul_rn(rest1, g));
    const float square = simt::mutant(337) ? __fmul_rn(__fmul_rn(rest2, g), g) : __fmul_rn(rest2, __fmul_rn(g, g));
    const float second = __fadd_rn(__fmul_rn(beta2, x.v), square);
    const float decayed = __fmul_rn(x.p, decay);
    const float ratio = __fdiv_rn(first, __fadd_rn(__fdiv_rn(__fsqrt_rn(second), root), eps));
    const float moved = simt::mutant(338) ? fmaf(-rate, ratio, decayed) : __fsub_rn(decayed, __fmul_rn(rate, ratio));
    return {moves ? moved : decayed, first, second};
  }
};

struct Sgd {
  static constexpr bool kTwo = false;
  float rate, momentum, decay;

  SIMT_DEVICE explicit Sgd(const float* s) : rate(s[0]), momentum(s[1]), decay(s[2]) {}

  SIMT_DEVICE Element operator()(const Element& x, float g, bool buffer, bool moves) const {
    const float whole = __fadd_rn(g, __fmul_rn(decay, x.p));
    const float step = buffer ? __fadd_rn(__fmul_rn(momentum, x.m), whole) : whole;
    return {moves ? __fsub_rn(x.p, __fmul_rn(rate, step)) : x.p, step, 0.f};
  }
};

/// The step of one run.
template <class Step>
SIMT_DEVICE void update_run(const UpdateSpec& spec, const Step& step, const Table& table, int t, float factor,
                            const Range& at) {
  const Extra& tensor = table.extra[t];
  void *param = table.array[kParam][t], *grad = table.array[kGrad][t], *copy = table.array[kCopy][t];
  void *first = table.array[kFirst][t], *second = table.array[kSecond][t];
  float g[kRun], p[kRun], m[kRun] = {}, v[kRun] = {};
  const auto load_state = [&] {
    load_run(param, tensor.param, at, p);
    if (first) load_run<float>(first, at, m);
    if (Step::kTwo) load_run<float>(second, at, v);
  };
  load_run(grad, tensor.grad, at, g);
  const bool freezes = spec.mode == MaskMode::kFreeze;
  if (!freezes) load_state();  // at once: nothing decides whether it is needed
  const uint32_t keep = kept_bits(spec, tensor, static_cast<const uint8_t*>(table.array[kMask][t]), at, g);
  if (spec.zero_grad) store_zeros(grad, tensor.grad, at);
  if (freezes) {
    if (keep == 0) {  // weights and moments stay, the moments unread
      if (!copy || simt::mutant(339)) return;
      load_run(param, tensor.param, at, p);
      return store_nearest(copy, tensor.copy, at, p);
    }
    load_state();
  }
  SIMT_UNROLL
  for (int e = 0; e < kRun; ++e) {
    const bool kept = keep >> e & 1u;
    // In mode kGradient what is masked has gradient 0 and does all the rest.
    const bool no_gradient = spec.mode == MaskMode::kGradient && !kept;
    const Element old{p[e], m[e], v[e]};
    const float scaled = simt::mutant(340) ? g[e] : __fmul_rn(g[e], factor);
    const Element stepped = step(old, no_gradient ? 0.f : scaled, first != nullptr, kept || no_gradient);
    const bool stays = spec.mode == MaskMode::kFreeze && !kept;
    p[e] = stays && !simt::mutant(341) ? old.p : stepped.p;
    m[e] = stays ? old.m : stepped.m, v[e] = stays ? old.v : stepped.v;
  }
  if (first) store_run(first, at, m);
  if (Step::kTwo) store_run(second, at, v);
  if (copy) store_nearest(copy, tensor.copy, at, p);
  if (spec.stochastic && tensor.param == DType::kBFloat16)
    store_stochastic(param, uint32_t(tensor.index), spec.seed, at, p);
  else
    store_nearest(param, tensor.param, at, p);
}

template <class Step>
__global__ void __launch_bounds__(kThreads, kBlocks)
    update_kernel(const __grid_constant__ Table table, const __grid_constant__ UpdateSpec spec) {
  const TensorChunk at = table.chunk_of(blockIdx.x);
  const Extra& tensor = table.extra[at.tensor];
  const int64_t size = table.size[at.tensor];
  const float factor = spec.factors[simt::mutant(342) ? at.tensor : tensor.index];
  const bool skipped =
      (factor != factor && !simt::mutant(343)) || (tensor.kind == MaskKind::kNone && spec.mode == MaskMode::kFreeze);
  if (skipped && !spec.zero_grad) return;
  const Step step(spec.scalars);
#pragma unroll 1
  for (int pass = 0; pass < kPasses; ++pass) {
    const int64_t first = at.first + (pass * kThreads + int(threadIdx.x)) * kRun;
    if (first >= size) return;
    const Range range{first, size, (tensor.aligned || simt::mutant(344)) && first + kRun <= size};
    if (skipped)
      store_zeros(table.array[kGrad][at.tensor], tensor.grad, range);
    else
      update_run(spec, step, table, at.tensor, factor, range);
  }
}

bool starts_on_16_bytes(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

template <class Step>
void run(const std::string& name, const UpdateSpec& spec, const std::vector<UpdateTensor>& tensors,
         const CudaContext& context) {
  std::vector<Table::Entry> entries;
  for (const UpdateTensor& x : tensors) {
    if (x.param_dtype != DType::kFloat32 && x.param_dtype != DType::kBFloat16)
      throw std::invalid_argument(name + " on CUDA steps parameters of float32 and bfloat16");
    if (x.grad_dtype == DType::kFloat64 || (x.copy && (x.copy_dtype == DType::kFloat64 || x.copy_dtype == DType::kFloat32)))
      throw std::invalid_argument(name +
                                  " on CUDA takes gradients of float32, bfloat16 and float16, and copies of the last "
                                  "two");
    bool aligned = true;
    for (const void* data : {x.param, x.grad, static_cast<void*>(x.first), static_cast<void*>(x.second), x.copy})
      aligned &= starts_on_16_bytes(data);
    const Extra extra{x.columns,    x.number, x.group, int32_t(entries.size()), x.param_dtype, x.grad_dtype,
                      x.copy_dtype, x.kind,   aligned};
    entries.push_back({{x.param, x.grad, x.first, x.second, x.copy, const_cast<uint8_t*>(x.mask)}, x.size, extra});
  }
  launch_tables<Table>(entries, kChunk, [&](const Table& table, unsigned blocks) {
    simt::check(simt::launch(update_kernel<Step>, dim3(blocks), dim3(kThreads), 0, static_cast<cudaStream_t>(context.stream),
                             table, spec),
                name.c_str());
  });
}

}  // namespace

void masked_adamw_cuda(const UpdateSpec& spec, const std::vector<UpdateTensor>& tensors, const CudaContext& context) {
  run<AdamW>("masked_adamw", spec, tensors, context);
}

void masked_sgd_cuda(const UpdateSpec& spec, const std::vector<UpdateTensor>& tensors, const CudaContext& context) {
  run<Sgd>("masked_sgd", spec, tensors, context);
}

}  // namespace longspan::kernels
