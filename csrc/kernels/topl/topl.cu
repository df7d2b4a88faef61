// The keys that queries keep on CUDA; see topl.h. A warp has one query: its table in shared memory, keys a lane each.
#include <climits>
#include <stdexcept>

#include "attention/device.cuh"
#include "pq/score.cuh"
#include "pq/tables.h"
#include "topl/topl.h"

namespace longspan::kernels {
namespace {

constexpr int kWarps = 4;               // of a block, where their tables fit
constexpr int kBlockBytes = 48 * 1024;  // that they may take
constexpr int kLow = 16;                // scores that share a bin of the first histogram

/// The parameter of all kernels here. `warp_bytes`: of shared memory, a table and then histograms.
template <class S>
struct ToplArguments {
  DeviceVectors<const S> q;
  DeviceSelection s;
  Pattern pattern;
  Layout queries, keys;
  int B = 0, H = 0, K = 0, T = 0, S_ = 0, budget = 0, slots = 0, warps = 1, warp_bytes = 0, table_bytes = 0, bins = 0;
  int16_t* threshold16 = nullptr;
  int8_t* threshold8 = nullptr;
  int32_t *cut = nullptr, *kept = nullptr, *indices = nullptr;
};

/// One warp's query: row number, table, bounds; and what it says of keys.
template <class S>
struct Query {
  const ToplArguments<S>& a;
  int64_t row;  // over batch, heads and queries
  int b, h, t, lane;
  unsigned char* memory;
  const int32_t* codes = nullptr;
  RowBounds bounds{};

  SIMT_DEVICE explicit Query(const ToplArguments<S>& args)
      : a(args), row(int64_t(blockIdx.x) * args.warps + int(threadIdx.x) / 32), lane(int(threadIdx.x) & 31) {
    memory = simt::dyn_smem<unsigned char>() + int(threadIdx.x) / 32 * a.warp_bytes;
    t = int(row % a.T), h = int(row / a.T % a.H), b = int(row / a.T / a.H);
  }
  SIMT_DEVICE bool inside() const { return row < int64_t(a.B) * a.H * a.T; }

  SIMT_DEVICE void prepare() {
    const S* q = a.q.data ? a.q.at(b * a.H + h, t) : nullptr;
    make_table(a.s, q, a.q.D, h, a.H, a.s.query_codes ? a.s.query_codes + row * a.s.book.W : nullptr, memory);
    codes = a.s.key_codes + (int64_t(b) * a.K + h / (a.H / a.K)) * a.S_ * a.s.book.W;
    bounds = row_bounds_of(a.pattern, a.queries, b, t, false);
  }
  SIMT_DEVICE bool reaches(int key) const {
    return key < a.S_ && reachable(bounds, token_doc(a.keys, b, key), token_pos(a.keys, b, key));
  }
  SIMT_DEVICE bool is_near(int key) const {
    return near(bounds, a.pattern.sinks, token_pos(a.keys, b, key), token_flag(a.keys, b, key));
  }
  SIMT_DEVICE int score(int key) const { return score_of_codes(a.s, memory, codes + int64_t(key) * a.s.book.W); }
};

/// Sum over the lanes.
SIMT_DEVICE int warp_total(int x) {
  SIMT_UNROLL
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
  return x;
}

/// The highest bin b of [0, bins) with at least `wanted` in b and above, and how many are above it: both the same in all
/// lanes.
SIMT_DEVICE void find_bin(const int* histogram, int bins, int wanted, int& bin, int& above) {
  const int lane = int(threadIdx.x) & 31;
  above = 0;
  for (int last = bins - 1;; last -= 32) {
    const int at = last - lane;
    int count = at >= 0 ? histogram[at] : 0;
    SIMT_UNROLL
    for (int offset = 1; offset < 32; offset *= 2) {  // from the last bin down to this one
      const int other = __shfl_up_sync(~0u, count, offset);
      if (lane >= offset) count += other;
    }
    const uint32_t enough = __ballot_sync(~0u, above + count >= wanted || at <= 0);
    if (enough) {
      const int lane_of_bin = __ffs(int(enough)) - 1;
      bin = max(0, last - lane_of_bin);
      const int before = __shfl_sync(~0u, count, max(0, lane_of_bin - 1));
      above += lane_of_bin > 0 ? before : 0;
      return;
    }
    above += __shfl_sync(~0u, count, 31);
  }
}

template <class S>
__global__ void __launch_bounds__(32 * kWarps) topl_threshold_kernel(const ToplArguments<S> a) {
  Query<S> query(a);
  if (!query.inside()) return;
  query.prepare();
  const int lane = query.lane;
  int* const high = reinterpret_cast<int*>(query.memory + a.table_bytes);
  int* const low = high + a.bins;
  for (int i = lane; i < a.bins + kLow; i += 32) high[i] = 0;
  if (!simt::mutant(192)) __syncwarp();
  int reached = 0, close = 0;
  for (int key = lane; key < a.S_; key += 32) {
    if (!query.reaches(key)) continue;
    ++reached;
    if (query.is_near(key))
      ++close;
    else
      atomicAdd(high + query.score(key) / kLow, 1);
  }
  reached = warp_total(reached), close = warp_total(close);
  __syncwarp();
  const int wanted = min(a.budget, reached) - (simt::mutant(193) ? 0 : close), others = reached - close;
  int threshold, cut = 0;
  if (wanted <= 0) {
    threshold = keeps_none(a.s.match ? Scorer::kMatch : Scorer::kAdc);
  } else if (wanted >= others) {
    threshold = kKeepsAll;
  } else {
    int bin = 0, above = 0, more = 0, part = 0;
    find_bin(high, a.bins, wanted, bin, above);
    for (int key = lane; key < a.S_; key += 32)
      if (query.reaches(key) && !query.is_near(key)) {
        const int score = query.score(key);
        if (score / kLow == bin) atomicAdd(low + score % kLow, 1);
      }
    __syncwarp();
    find_bin(low, kLow, wanted - above, part, more);
    threshold = bin * kLow + part;
    int left = wanted - above - more;  // of those at the threshold, the newest
    for (int first = (a.S_ - 1) / 32 * 32; first >= 0; first -= 32) {
      const int key = first + lane;
      const bool equal = query.reaches(key) && !query.is_near(key) && query.score(key) == threshold;
      const uint32_t found = __ballot_sync(~0u, equal);
      if (__popc(found) < left) {
        left -= __popc(found);
        continue;
      }
      uint32_t rest = found;  // the left-th from the highest
      for (int i = 1; i < left; ++i) rest &= ~(1u << (31 - __clz(int(rest))));
      cut = first + (simt::mutant(194) ? __ffs(int(rest)) - 1 : 31 - __clz(int(rest)));
      break;
    }
  }
  if (lane != 0) return;
  if (a.threshold8)
    a.threshold8[query.row] = int8_t(threshold);
  else
    a.threshold16[query.row] = int16_t(threshold);
  a.cut[query.row] = cut;
  a.kept[query.row] = close + max(0, min(wanted, others));
}

template <class S>
__global__ void __launch_bounds__(32 * kWarps) topl_indices_kernel(const ToplArguments<S> a) {
  Query<S> query(a);
  if (!query.inside()) return;
  query.prepare();
  const int threshold = a.s.threshold_at(query.row), cut = a.s.cut[query.row];
  int32_t* list = a.indices + query.row * a.slots;
  int used = 0;
  for (int first = 0; first < a.S_ && used < a.slots; first += 32) {
    const int key = first + query.lane;
    bool kept = query.reaches(key);
    if (kept && !query.is_near(key)) {
      const int score = query.score(key);
      kept = score > threshold || (score == threshold && (simt::mutant(195) ? key > cut : key >= cut));
    }
    const uint32_t found = __ballot_sync(~0u, kept);
    const int place = used + __popc(found & ((1u << query.lane) - 1));
    if (kept && place < a.slots) list[place] = key;
    used += __popc(found);
  }
  for (int i = min(used, a.slots) + query.lane; i < a.slots; i += 32) list[i] = -1;
}

template <class S>
ToplArguments<S> arguments_of(const char* name, const ToplSpec& spec, const ToplTensors& io, bool histograms) {
  if (io.q.data && io.q.dtype == DType::kFloat64)
    throw std::invalid_argument(std::string(name) + " on CUDA takes float32, float16 and bfloat16, not float64");
  if (spec.B * spec.H * spec.T > INT_MAX || spec.S > INT_MAX - 64)
    throw std::invalid_argument(std::string(name) + " on CUDA takes fewer than 2^31 queries over batch and heads, and keys");
  ToplArguments<S> a;
  if (io.q.data) a.q = DeviceVectors<const S>(io.q);
  a.s = DeviceSelection(io.selection);
  a.pattern = spec.pattern, a.queries = spec.queries, a.keys = spec.keys;
  a.B = int(spec.B), a.H = int(spec.H), a.K = int(spec.K), a.T = int(spec.T), a.S_ = int(spec.S);
  a.budget = int(spec.budget < INT_MAX ? spec.budget : INT_MAX);
  a.table_bytes = int(table_scratch(a.s.book.M, a.s.book.E, a.s.book.bits, a.s.match));
  a.bins = (a.s.book.M * (a.s.match ? 1 : 255)) / kLow + 1;
  a.warp_bytes = a.table_bytes + (histograms ? int(round_up((a.bins + kLow) * 4, 16)) : 0);
  a.warps = a.warp_bytes * kWarps <= kBlockBytes ? kWarps : 1;
  return a;
}

template <class S, class Kernel>
void launch(const char* name, Kernel kernel, const ToplArguments<S>& a, const CudaContext& context) {
  const int64_t rows = int64_t(a.B) * a.H * a.T;
  if (rows == 0) return;
  simt::check(simt::launch(kernel, dim3(unsigned(ceil_div(rows, a.warps))), dim3(32 * a.warps),
                           size_t(a.warp_bytes) * a.warps, static_cast<cudaStream_t>(context.stream), a),
              name);
}

}  // namespace

void topl_threshold_cuda(const ToplSpec& spec, const ToplTensors& io, const ToplThreshold& out, const CudaContext& context) {
  of_dtype(io.q.dtype, [&]<class S>(S) {
    auto a = arguments_of<S>("topl_threshold", spec, io, true);
    a.threshold8 = a.s.match ? static_cast<int8_t*>(out.threshold) : nullptr;
    a.threshold16 = a.s.match ? nullptr : static_cast<int16_t*>(out.threshold);
    a.cut = out.cut, a.kept = out.kept;
    launch("topl_threshold", topl_threshold_kernel<S>, a, context);
  });
}

void topl_indices_cuda(const ToplSpec& spec, const ToplTensors& io, int64_t slots, int32_t* indices,
                       const CudaContext& context) {
  of_dtype(io.q.dtype, [&]<class S>(S) {
    auto a = arguments_of<S>("topl_indices", spec, io, false);
    a.indices = indices, a.slots = int(slots);
    launch("topl_indices", topl_indices_kernel<S>, a, context);
  });
}

void adc_table_cuda(const ToplSpec& spec, const ToplTensors& io, uint8_t* tables, const CudaContext& context) {
  if (io.q.dtype == DType::kFloat64)
    throw std::invalid_argument("adc_table on CUDA takes float32, float16 and bfloat16, not float64");
  score_tables_cuda(io.selection, io.q, spec.B, spec.H, spec.T, tables, context);
}

}  // namespace longspan::kernels
