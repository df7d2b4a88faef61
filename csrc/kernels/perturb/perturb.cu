// Perturbation and update by noise on CUDA; see perturb.h.
#include <stdexcept>

#include "common/convert.cuh"
#include "common/multi_tensor.cuh"
#include "perturb/noise.h"

namespace longspan::kernels {
namespace {

// A block takes a chunk of logical indices, each thread kPasses runs of kRun that follow each other.
constexpr int kThreads = 256, kRun = 4, kPasses = 4, kChunk = kThreads * kRun * kPasses;
// Rademacher: counters of a chunk, and how many members' signs the block makes at a time.
constexpr int kCounters = kChunk / kSigns, kTogether = kThreads / kCounters;
static_assert(kChunk % kSigns == 0 && kThreads % kCounters == 0);

/// The arithmetic of noise.h on numbers.
struct ScalarArithmetic {
  using F = float;
  using U = uint32_t;
  SIMT_DEVICE static F mul(F a, F b) { return __fmul_rn(a, b); }
  SIMT_DEVICE static F add(F a, F b) { return __fadd_rn(a, b); }
  SIMT_DEVICE static F sqrt(F x) { return __fsqrt_rn(x); }
  SIMT_DEVICE static F splat(float x) { return x; }
  SIMT_DEVICE static F select(U mask, F a, F b) { return mask ? a : b; }
  SIMT_DEVICE static F from_signed(U x) { return __int2float_rn(int(x)); }
  SIMT_DEVICE static U bits(F x) { return __float_as_uint(x); }
  SIMT_DEVICE static F from_bits(U x) { return __uint_as_float(x); }
  SIMT_DEVICE static U sign_mask(U x) { return uint32_t(int32_t(x) >> 31); }
};

struct Extra {
  int64_t offset;
  uint32_t tensor_id;
  int32_t number;  // of the tensor in the call, for its decay
  DType source, target, copy;
  bool aligned;  // runs of logical indices are runs of all arrays, on their own size
};
using Table = TensorTable<3, Extra>;  // source, target, copy

struct Arguments {
  EsWeights weights;
  const int64_t *seeds, *steps;
  int64_t members;
  uint32_t stream;
};

SIMT_DEVICE float member_weight(const Arguments& a, int64_t n) {
  const float coefficient = a.weights.coefficients[n];
  return a.weights.alpha ? __fmul_rn(*a.weights.alpha, coefficient) : coefficient;
}

template <class S>
struct alignas(kRun * sizeof(S)) Run {
  S at[kRun];
};

template <class S>
SIMT_DEVICE void load_run(const void* from, int64_t first, int64_t size, bool whole, float (&to)[kRun]) {
  const S* x = static_cast<const S*>(from);
  if (whole) {
    const Run<S> run = *reinterpret_cast<const Run<S>*>(x + first);
    SIMT_UNROLL
    for (int e = 0; e < kRun; ++e) to[e] = to_float(run.at[e]);
    return;
  }
  SIMT_UNROLL
  for (int e = 0; e < kRun; ++e)
    to[e] = first + e >= 0 && (first + e < size || simt::mutant(350)) ? to_float(x[first + e]) : 0.f;
}
SIMT_DEVICE void load_run(const void* from, DType dtype, int64_t first, int64_t size, bool whole, float (&to)[kRun]) {
  if (dtype == DType::kFloat32) return load_run<float>(from, first, size, whole, to);
  if (dtype == DType::kBFloat16 || simt::mutant(351)) return load_run<__nv_bfloat16>(from, first, size, whole, to);
  load_run<__half>(from, first, size, whole, to);
}

template <class S>
SIMT_DEVICE void store_run(void* to, int64_t first, int64_t size, bool whole, const float (&from)[kRun]) {
  S* y = static_cast<S*>(to);
  if (whole) {
    Run<S> run;
    SIMT_UNROLL
    for (int e = 0; e < kRun; ++e) store(&run.at[e], from[e]);
    *reinterpret_cast<Run<S>*>(y + first) = run;
    return;
  }
  SIMT_UNROLL
  for (int e = 0; e < kRun; ++e)
    if ((first + e >= 0 || simt::mutant(352)) && first + e < size) store(y + first + e, from[e]);
}
SIMT_DEVICE void store_run(void* to, DType dtype, int64_t first, int64_t size, bool whole, const float (&from)[kRun]) {
  if (!to) return;
  if (dtype == DType::kFloat32) return store_run<float>(to, first, size, whole, from);
  if (dtype == DType::kBFloat16) return store_run<__nv_bfloat16>(to, first, size, whole, from);
  store_run<__half>(to, first, size, whole, from);
}

/// sum[e] += weight z[e] for a run of 4 logical indices from `first` on.
SIMT_DEVICE void add_gaussian(uint64_t first, uint32_t stream, uint64_t key, float weight, float (&sum)[kRun]) {
  const uint64_t q = first / 4;
  const uint32_t high = simt::mutant(353) ? 0u : uint32_t(q >> 32);
  const PhiloxWords x = philox(uint32_t(q), high, simt::mutant(354) ? 0u : stream, 0u, key);
  float z[kRun];
  gaussian_pair<ScalarArithmetic>(x.word[0], x.word[1], z[0], z[1]);
  gaussian_pair<ScalarArithmetic>(x.word[2], x.word[3], z[2], z[3]);
  SIMT_UNROLL
  for (int e = 0; e < kRun; ++e)
    sum[e] = simt::mutant(355) ? fmaf(weight, z[e], sum[e]) : __fadd_rn(sum[e], __fmul_rn(weight, z[e]));
}

/// sum[pass] of all runs of the thread. The block makes the signs of some members at a time, one counter a thread, because
/// a run uses 4 of its 128.
SIMT_DEVICE void add_signs(const Arguments& a, uint32_t tensor_id, uint64_t chunk, float (&sum)[kPasses][kRun]) {
  SIMT_SHARED(uint32_t[kThreads * 4], words);
  for (int64_t from = 0; from < a.members; from += kTogether) {
    const int together = int(a.members - from < kTogether ? a.members - from : kTogether);
    const int member = int(threadIdx.x) / kCounters, counter = int(threadIdx.x) % kCounters;
    if (member < together) {
      const uint64_t key = noise_key(a.seeds[from + member], a.steps[from + member], tensor_id);
      const uint64_t q = chunk / kSigns + uint64_t(counter);
      const PhiloxWords x = philox_words(q, a.stream, key);
      SIMT_UNROLL
      for (int w = 0; w < 4; ++w) words[int(threadIdx.x) * 4 + w] = x.word[w];
    }
    if (!simt::mutant(356)) __syncthreads();
    for (int n = 0; n < together; ++n) {
      const uint32_t weight = __float_as_uint(member_weight(a, from + n));
      if ((weight << 1) == 0) continue;
      SIMT_UNROLL
      for (int pass = 0; pass < kPasses; ++pass) {
        const int at = (pass * kThreads + int(threadIdx.x)) * kRun;
        const uint32_t bits = words[n * kCounters * 4 + at / 32] >> (simt::mutant(357) ? 0 : at % 32);
        SIMT_UNROLL
        for (int e = 0; e < kRun; ++e)
          sum[pass][e] = __fadd_rn(sum[pass][e], __uint_as_float(weight ^ (bits << (31 - e) & 0x80000000u)));
      }
    }
    if (!simt::mutant(358)) __syncthreads();  // before the words of the next members
  }
}

/// One chunk of one tensor.
template <Distribution Kind>
__global__ void __launch_bounds__(kThreads)
    noise_kernel(const __grid_constant__ Table table, const __grid_constant__ Arguments a) {
  const TensorChunk at = table.chunk_of(blockIdx.x);
  const Extra& tensor = table.extra[at.tensor];
  const int64_t lead = tensor.offset % kSigns, size = table.size[at.tensor] - lead;
  const uint64_t chunk = uint64_t(tensor.offset - lead + at.first);  // a multiple of 128
  const float decay = a.weights.decay ? a.weights.decay[simt::mutant(359) ? at.tensor : tensor.number] : 0.f;
  const float keep = __fadd_rn(1.f, -decay);

  float sums[kPasses][kRun];
  SIMT_UNROLL
  for (int i = 0; i < kPasses * kRun; ++i)
    sums[i / kRun][i % kRun] = simt::mutant(360) ? 0.f : -0.f;  // what leaves any other number alone
  if constexpr (Kind == Distribution::kRademacher) add_signs(a, tensor.tensor_id, chunk, sums);

  // Gaussian noise is made a pass at a time in a loop that is not unrolled: its code is long.
  const auto finish = [&](int pass, float (&sum)[kRun]) {
    const int within = (pass * kThreads + int(threadIdx.x)) * kRun;
    const int64_t first = at.first + within - lead;
    if (first + kRun <= 0 || first >= size) return;
    if constexpr (Kind == Distribution::kGaussian) {
      for (int64_t n = 0; n < a.members; ++n) {
        const float weight = member_weight(a, simt::mutant(361) ? 0 : n);
        if (weight == 0.f && !simt::mutant(362)) continue;
        const uint64_t key = noise_key(a.seeds[n], a.steps[n], simt::mutant(363) ? 0u : tensor.tensor_id);
        add_gaussian(chunk + uint64_t(within), a.stream, key, weight, sum);
      }
    }
    const bool whole = (tensor.aligned || simt::mutant(364)) && first >= 0 && first + kRun <= size;
    float y[kRun];
    load_run(table.array[0][at.tensor], tensor.source, first, size, whole, y);
    SIMT_UNROLL
    for (int e = 0; e < kRun; ++e) y[e] = __fadd_rn(__fmul_rn(keep, y[e]), sum[e]);
    store_run(table.array[1][at.tensor], tensor.target, first, size, whole, y);
    store_run(table.array[2][at.tensor], tensor.copy, first, size, whole, y);
  };
  if constexpr (Kind == Distribution::kGaussian) {
#pragma unroll 1
    for (int pass = 0; pass < kPasses; ++pass) {
      float sum[kRun] = {sums[0][0], sums[0][1], sums[0][2], sums[0][3]};
      finish(pass, sum);
    }
  } else {
    SIMT_UNROLL
    for (int pass = 0; pass < kPasses; ++pass) finish(pass, sums[pass]);
  }
}

bool is_aligned(const void* data, DType dtype) {
  return reinterpret_cast<uintptr_t>(data) % uintptr_t(kRun * element_size(dtype)) == 0;
}

}  // namespace

void es_update_cuda(const NoiseSpec& noise, const EsWeights& weights, const std::vector<PerturbTensor>& tensors,
                    const CudaContext& context) {
  std::vector<Table::Entry> entries;
  for (const PerturbTensor& t : tensors) {
    for (const DType dtype : {t.source_dtype, t.target_dtype, t.copy_dtype})
      if (dtype == DType::kFloat64)
        throw std::invalid_argument("noise on CUDA is added to float32, float16 and bfloat16, not float64");
    const bool aligned = t.offset % kRun == 0 && is_aligned(t.source, t.source_dtype) &&
                         is_aligned(t.target, t.target_dtype) && is_aligned(t.copy, t.copy_dtype);
    const Extra extra{t.offset, t.tensor_id, int32_t(entries.size()), t.source_dtype, t.target_dtype, t.copy_dtype, aligned};
    entries.push_back({{const_cast<void*>(t.source), t.target, t.copy}, t.size ? t.offset % kSigns + t.size : 0, extra});
  }
  const Arguments arguments{weights, noise.seeds, noise.steps, noise.members, noise.stream};
  const auto kernel = noise.distribution == Distribution::kGaussian ? noise_kernel<Distribution::kGaussian>
                                                                    : noise_kernel<Distribution::kRademacher>;
  launch_tables<Table>(entries, kChunk, [&](const Table& table, unsigned blocks) {
    simt::check(
        simt::launch(kernel, dim3(blocks), dim3(kThreads), 0, static_cast<cudaStream_t>(context.stream), table, arguments),
        "perturb");
  });
}

void perturb_cuda(const NoiseSpec& noise, const float* scale, const std::vector<PerturbTensor>& tensors,
                  const CudaContext& context) {
  es_update_cuda(noise, {scale, nullptr, nullptr}, tensors, context);
}

}  // namespace longspan::kernels
