// Histograms and order statistics of magnitudes on CUDA; see magnitude.h. Chunks of many tensors are counted by a block
// each, groups are finished by a block each; nothing returns to the host. The launches of a call, twice the chunks for
// float32:
//   clear, upper, kth_upper, (lower, kth_lower: groups with float32), ties, cut; or clear, upper or lower, squares; or
//   squared_norms, squares
#include <algorithm>
#include <limits>
#include <numeric>

#include "common/multi_tensor.cuh"
#include "magnitude/check.h"
#include "magnitude/chunk.cuh"

namespace longspan::kernels {
namespace {

using namespace magnitude;

constexpr int kWords = int(kUpperBins) / 2;  // of shared memory, two counters each
constexpr int kBlocks = 2;                   // of chunks on a multiprocessor
constexpr int kSlots = 2048;                 // lower bins that a block counts in shared memory
static_assert(kChunk < 1 << 16);

struct ChunkExtra {
  int64_t number;  // of the tensor's first element within its group
  int32_t group;
  DType dtype;
  bool wide, aligned;  // wide: the group has float32, and a bin is not one magnitude
};
using Table = TensorTable<1, ChunkExtra>;

/// One group as an entry of one chunk, so that block i has entry i.
struct GroupExtra {
  int64_t first_chunk, chunks, elements;
  int32_t group;
  bool wide, half;
};
using GroupTable = TensorTable<1, GroupExtra>;

/// What chunks are counted into; arrays of chunks are in the order of the launches' blocks, a group's together.
struct ChunkArguments {
  int64_t* counts;  // [G, columns]; null where only squares are wanted
  int64_t columns;
  double* squares;  // [chunks]
  const int32_t* bins;
  int64_t first_chunk;  // of the launch
};

/// What the passes over a group have left to do.
struct GroupState {
  int64_t above;  // elements with higher upper bits
  int64_t need;   // how many of the equal ones are kept, 0 where no cut is to be found
  uint32_t bits;  // of those
};

/// A chunk of a group whose cut is to be found.
struct TieChunk {
  const void* data;
  int64_t number;
  int32_t ties, size;
  DType dtype;
};

struct KthArguments {
  KthOutput out;
  int64_t groups, columns;
  int64_t* counts;
  double* squares;
  int32_t* bins;
  GroupState* states;
  TieChunk* ties;
};

// ---- chunks -----------------------------------------------------------------------------------------------------------

/// A block's chunk.
struct ChunkView {
  const ChunkExtra& tensor;
  const char* data;
  int64_t number;
  int count;

  SIMT_DEVICE ChunkView(const Table& table, const TensorChunk& at)
      : tensor(table.extra[at.tensor]),
        data(static_cast<const char*>(table.array[0][at.tensor]) + at.first * (tensor.dtype == DType::kFloat32 ? 4 : 2)),
        number((simt::mutant(305) ? 0 : tensor.number) + at.first),
        count(int(min(int64_t(kChunk), table.size[at.tensor] - at.first))) {}

  template <class Reader, class Units, class One>
  SIMT_DEVICE void visit(Units&& units, One&& one) const {
    magnitude::visit(reinterpret_cast<const typename Reader::Raw*>(data), count, tensor.aligned, units, one);
  }

  template <class Reader, class One>
  SIMT_DEVICE void each(One&& one) const {
    visit<Reader>(
        [&](const Unit<typename Reader::Raw>& unit) {
          SIMT_UNROLL
          for (int e = 0; e < kUnit<typename Reader::Raw>; ++e) one(unit.at[e]);
        },
        one);
  }
};

__global__ void __launch_bounds__(kThreads) magnitude_clear_kernel(int64_t* counts, int64_t size) {
  const int64_t step = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + int(threadIdx.x); i < size; i += step) counts[i] = 0;
}

/// Two neighbours among counters lie in different words: magnitudes that share a word differ by a factor of 2^128.
SIMT_DEVICE void add_upper(uint32_t* words, uint32_t key, uint32_t n) {
  atomicAdd(words + (key & uint32_t(kWords - 1)), n << (key / kWords * 16));
}

/// Counts a chunk by upper bits; the thread's sum of squares.
template <class Reader, bool Squares>
SIMT_DEVICE double count_upper(const ChunkView& chunk, uint32_t* words) {
  using Raw = typename Reader::Raw;
  double squares = 0;
  uint32_t zeros = 0;  // the one magnitude that is frequent: a counter of its own a thread
  const auto count = [&](Raw x) {
    const uint32_t key = Reader::bits(x) >> 16;
    if (key)
      add_upper(words, key, 1);
    else
      ++zeros;
  };
  const auto add_square = [&](Raw x) {
    if constexpr (Squares) squares += Reader::value(x) * Reader::value(x);
  };
  chunk.visit<Reader>(
      [&](const Unit<Raw>& unit) {
        SIMT_UNROLL
        for (int e = 0; e < kUnit<Raw>; ++e) add_square(unit.at[e]);
        if (warp_is_equal<Reader>(unit, 0x7fff0000u)) {
          if (threadIdx.x % 32 == 0) add_upper(words, Reader::bits(unit.at[0]) >> 16, 32 * kUnit<Raw>);
          return;
        }
        SIMT_UNROLL
        for (int e = 0; e < kUnit<Raw>; ++e) count(unit.at[e]);
      },
      [&](Raw x) { add_square(x), count(x); });
  zeros = simt::mutant(306) ? zeros : warp_sum(zeros);
  if (zeros && threadIdx.x % 32 == 0) add_upper(words, 0, zeros);
  return squares;
}

__global__ void __launch_bounds__(kThreads, kBlocks)
    magnitude_upper_kernel(const __grid_constant__ Table table, const ChunkArguments a) {
  auto* words = simt::dyn_smem<uint32_t>();
  auto* quads = reinterpret_cast<Unit<uint32_t>*>(words);
  for (int i = int(threadIdx.x); i < kWords / 4; i += kThreads) quads[i] = Unit<uint32_t>{};
  const ChunkView chunk(table, table.chunk_of(blockIdx.x));
  if (!simt::mutant(307)) __syncthreads();
  // A bin of 16-bit elements is one magnitude: its squares come from its count, and both dtypes are the same keys.
  double squares = 0;
  if (chunk.tensor.dtype == DType::kFloat32)
    squares = count_upper<Float32Bits, true>(chunk, words);
  else if (chunk.tensor.wide)
    squares = count_upper<BFloat16Bits, true>(chunk, words);
  else
    count_upper<BFloat16Bits, false>(chunk, words);
  if (!simt::mutant(308)) __syncthreads();
  int64_t* counts = a.counts + chunk.tensor.group * a.columns;
  for (int i = int(threadIdx.x); i < kWords / 4; i += kThreads) {
    const Unit<uint32_t> quad = quads[i];
    SIMT_UNROLL
    for (int e = 0; e < 4; ++e) {
      const uint32_t low = quad.at[e] & 0xffffu, high = quad.at[e] >> 16;
      if (low) atomicAdd(reinterpret_cast<unsigned long long*>(counts + i * 4 + e), low);
      if (high) atomicAdd(reinterpret_cast<unsigned long long*>(counts + kWords + i * 4 + e), high);
    }
  }
  if (!chunk.tensor.wide) return;
  squares = block_sum(squares);
  if (threadIdx.x == 0) a.squares[a.first_chunk + blockIdx.x] = squares;
}

/// Adds to a lower bin: in a slot of shared memory (bin in its upper half, count in its lower) that the first bin there
/// keeps, else at once. Float32 that once was 16-bit has few lower bins, which would wait for each other in global memory.
SIMT_DEVICE void add_lower(uint32_t* slots, int64_t* counts, uint32_t bin, uint32_t n) {
  uint32_t* slot = slots + ((bin ^ bin >> 5) & uint32_t(kSlots - 1));
  const uint32_t found = atomicCAS(slot, 0u, bin << 16 | n);
  if (found == 0) return;
  if (found >> 16 == bin || simt::mutant(309))
    atomicAdd(slot, n);
  else
    atomicAdd(reinterpret_cast<unsigned long long*>(counts + bin), n);
}

/// Counts a chunk's elements with upper bits `bin` by lower bits; the thread's sum of the squares of those above.
template <class Reader>
SIMT_DEVICE double count_lower(const ChunkView& chunk, uint32_t bin, uint32_t* slots, int64_t* counts) {
  using Raw = typename Reader::Raw;
  double squares = 0;
  const auto count = [&](Raw x) {
    const uint32_t bits = Reader::bits(x);
    if (bits >> 16 > bin) squares += Reader::value(x) * Reader::value(x);
    if (bits >> 16 == bin) add_lower(slots, counts, bits & 0xffffu, 1);
  };
  chunk.visit<Reader>(
      [&](const Unit<Raw>& unit) {
        const uint32_t first = Reader::bits(unit.at[0]);
        if (warp_is_equal<Reader>(unit, ~0u) && first >> 16 == bin) {
          if (threadIdx.x % 32 == 0) add_lower(slots, counts, first & 0xffffu, 32 * kUnit<Raw>);
          return;
        }
        SIMT_UNROLL
        for (int e = 0; e < kUnit<Raw>; ++e) count(unit.at[e]);
      },
      count);
  return squares;
}

__global__ void __launch_bounds__(kThreads, kBlocks)
    magnitude_lower_kernel(const __grid_constant__ Table table, const ChunkArguments a) {
  SIMT_SHARED(uint32_t[kSlots], slots);
  for (int i = int(threadIdx.x); i < kSlots; i += kThreads) slots[i] = 0;
  const ChunkView chunk(table, table.chunk_of(blockIdx.x));
  __syncthreads();
  const uint32_t bin = uint32_t(a.bins[chunk.tensor.group]);
  int64_t* counts = a.counts + chunk.tensor.group * a.columns;
  double squares = 0;
  if (chunk.tensor.dtype == DType::kFloat32)
    squares = count_lower<Float32Bits>(chunk, bin, slots, counts);
  else if (chunk.tensor.dtype == DType::kBFloat16)
    squares = count_lower<BFloat16Bits>(chunk, bin, slots, counts);
  else
    squares = count_lower<Float16Bits>(chunk, bin, slots, counts);
  if (!simt::mutant(310)) __syncthreads();
  for (int i = int(threadIdx.x); i < kSlots; i += kThreads)
    if (const uint32_t slot = slots[i])
      atomicAdd(reinterpret_cast<unsigned long long*>(counts + (slot >> 16)), slot & 0xffffu);
  squares = block_sum(squares);
  if (threadIdx.x == 0) a.squares[a.first_chunk + blockIdx.x] = squares;
}

/// Counts what equals the threshold in groups whose cut falls among those.
__global__ void __launch_bounds__(kThreads, kBlocks)
    magnitude_ties_kernel(const __grid_constant__ Table table, const KthArguments a, const int64_t first_chunk) {
  const ChunkView chunk(table, table.chunk_of(blockIdx.x));
  if (a.states[chunk.tensor.group].need == 0) return;
  const uint32_t bits = a.states[chunk.tensor.group].bits;
  int32_t ties = 0;
  const auto count = [&]<class Reader>(Reader) {
    chunk.each<Reader>([&](typename Reader::Raw x) { ties += Reader::bits(x) == bits; });
  };
  if (chunk.tensor.dtype == DType::kFloat32)
    count(Float32Bits());
  else
    count(BFloat16Bits());
  ties = block_sum(ties);
  if (threadIdx.x == 0) a.ties[first_chunk + blockIdx.x] = {chunk.data, chunk.number, ties, chunk.count, chunk.tensor.dtype};
}

// ---- groups -----------------------------------------------------------------------------------------------------------

/// The sum of the chunks' squares, in a fixed order.
SIMT_DEVICE double chunk_squares(const GroupExtra& group, const double* squares) {
  double sum = 0;
  for (int64_t i = int64_t(threadIdx.x); i < group.chunks; i += kThreads) sum += squares[group.first_chunk + i];
  return block_sum(sum);
}

/// Sums of squares of the elements in bins above `bin`, and in all; bits of a bin are base | index << shift.
struct BinSquares {
  double above = 0, all = 0;

  SIMT_DEVICE BinSquares(const int64_t* counts, int bins, int bin, uint32_t base, int shift, bool half) {
    for (int i = int(threadIdx.x); i < bins; i += kThreads) {
      const int64_t count = counts[i];
      if (count == 0) continue;
      const double squares = double(count) * square(base | uint32_t(i) << shift, half);
      all += squares;
      above += i > bin ? squares : 0.0;
    }
    above = block_sum(above), all = block_sum(all);
  }
};

/// Writes a group's results but a cut among equal ones, which the next passes find. For one thread.
SIMT_DEVICE void finish(const KthArguments& a, const GroupExtra& group, int64_t wanted, uint32_t bits, int64_t above,
                        int64_t equal, double above_squares) {
  const int32_t g = group.group;
  const int64_t need = wanted - above, equal_kept = a.out.exact && need < equal ? need : equal, ties = bits ? equal_kept : 0;
  a.out.bits[g] = int32_t(group.half ? __float_as_uint(half_magnitude(bits >> 16)) : bits);
  a.out.cut[g] = bits ? std::numeric_limits<int64_t>::max() : 0;
  a.out.kept[g] = above + ties;
  a.out.squares[g] = a.out.norms ? above_squares + (ties ? double(ties) * square(bits, group.half) : 0.0) : 0.0;
  a.states[g].need = a.out.exact && bits && equal > need ? need : 0;
  a.states[g].bits = bits;
}

/// What is told of the squares of a whole group: no sum of finite ones overflows.
SIMT_DEVICE double whole_squares(const KthArguments& a, double sum) {
  return a.out.norms ? sum : sum < double(INFINITY) ? 0.0 : double(NAN);
}

SIMT_DEVICE int64_t wanted_of(const KthArguments& a, const GroupExtra& group) {
  const int64_t wanted = a.out.wanted[group.group];
  if (simt::mutant(311)) return wanted;
  return wanted < 1 ? 1 : wanted > group.elements ? group.elements : wanted;
}

__global__ void __launch_bounds__(kThreads)
    kth_upper_kernel(const __grid_constant__ GroupTable table, const KthArguments a) {
  const GroupExtra& group = table.extra[blockIdx.x];
  const int32_t g = group.group;
  const bool first = threadIdx.x == 0;
  if (group.elements == 0) {
    if (first) a.out.squares[a.groups + g] = 0.0, finish(a, group, 0, 0, 0, 0, 0.0);
    return;
  }
  int64_t* counts = a.counts + g * a.columns;
  const int64_t wanted = wanted_of(a, group);
  const Place top = locate(kUpperBins, wanted, [&](int64_t i) { return counts[kUpperBins - 1 - i]; });
  const int bin = int(kUpperBins - 1 - top.at);
  if (!group.wide) {
    const BinSquares squares(counts, int(kUpperBins), bin, 0, 16, group.half);
    if (first) {
      a.out.squares[a.groups + g] = whole_squares(a, squares.all);
      finish(a, group, wanted, uint32_t(bin) << 16, top.before, top.here, squares.above);
    }
    return;
  }
  const double all = chunk_squares(group, a.squares);  // its barriers also part the reads above from clearing
  if (!simt::mutant(312))
    for (int i = int(threadIdx.x); i < int(kLowerBins); i += kThreads) counts[i] = 0;
  if (first) a.bins[g] = bin, a.states[g].above = top.before, a.out.squares[a.groups + g] = whole_squares(a, all);
}

__global__ void __launch_bounds__(kThreads)
    kth_lower_kernel(const __grid_constant__ GroupTable table, const KthArguments a) {
  const GroupExtra& group = table.extra[blockIdx.x];
  const int64_t* counts = a.counts + group.group * a.columns;
  const int64_t above = a.states[group.group].above, wanted = wanted_of(a, group);
  const Place low =
      locate(kLowerBins, wanted - (simt::mutant(313) ? 0 : above), [&](int64_t i) { return counts[kLowerBins - 1 - i]; });
  const int bin = int(kLowerBins - 1 - low.at);
  const uint32_t base = uint32_t(a.bins[group.group]) << 16;
  const double higher = chunk_squares(group, a.squares);
  const BinSquares squares(counts, int(kLowerBins), bin, base, 0, false);
  if (threadIdx.x == 0) finish(a, group, wanted, base | uint32_t(bin), above + low.before, low.here, higher + squares.above);
}

/// One past the place of the element of a chunk that is the wanted-th with these bits.
template <class Reader>
SIMT_DEVICE int64_t place_of(const TieChunk& chunk, uint32_t bits, int64_t wanted) {
  const auto* x = static_cast<const typename Reader::Raw*>(chunk.data);
  return locate(chunk.size, wanted, [&](int64_t i) { return Reader::bits(x[i]) == bits; }).at + 1;
}

__global__ void __launch_bounds__(kThreads) kth_cut_kernel(const __grid_constant__ GroupTable table, const KthArguments a) {
  const GroupExtra& group = table.extra[blockIdx.x];
  const GroupState& state = a.states[group.group];
  if (state.need == 0) return;
  const TieChunk* ties = a.ties + group.first_chunk;
  const Place at = locate(group.chunks, state.need, [&](int64_t i) { return ties[i].ties; });
  const TieChunk& chunk = ties[at.at];
  const int64_t need = state.need - (simt::mutant(314) ? 0 : at.before);
  const int64_t place = chunk.dtype == DType::kFloat32 ? place_of<Float32Bits>(chunk, state.bits, need)
                                                       : place_of<BFloat16Bits>(chunk, state.bits, need);
  if (threadIdx.x == 0) a.out.cut[group.group] = chunk.number + place;
}

/// The squares of a chunk.
__global__ void __launch_bounds__(kThreads, kBlocks)
    squared_norms_kernel(const __grid_constant__ Table table, const ChunkArguments a) {
  const ChunkView chunk(table, table.chunk_of(blockIdx.x));
  double squares = 0;
  const auto add = [&]<class Reader>(Reader) {
    chunk.each<Reader>([&](typename Reader::Raw x) { squares += Reader::value(x) * Reader::value(x); });
  };
  if (chunk.tensor.dtype == DType::kFloat32)
    add(Float32Bits());
  else if (chunk.tensor.dtype == DType::kBFloat16)
    add(BFloat16Bits());
  else
    add(Float16Bits());
  squares = block_sum(squares);
  if (threadIdx.x == 0) a.squares[(simt::mutant(315) ? 0 : a.first_chunk) + blockIdx.x] = squares;
}

/// Sums of squares of groups: from the counts of upper bins where each is one magnitude, else from those of chunks.
__global__ void __launch_bounds__(kThreads)
    magnitude_squares_kernel(const __grid_constant__ GroupTable table, const ChunkArguments a, double* squares) {
  const GroupExtra& group = table.extra[blockIdx.x];
  double sum = 0;
  if (a.bins || group.wide || !a.counts)
    sum = chunk_squares(group, a.squares);
  else
    sum = BinSquares(a.counts + group.group * a.columns, int(kUpperBins), 0, 0, 16, group.half).all;
  if (threadIdx.x == 0) squares[group.group] = sum;
}

// ---- host -------------------------------------------------------------------------------------------------------------

/// What is launched: chunks of tensors sorted by group, and the groups.
struct Plan {
  std::vector<Table::Entry> tensors;
  std::vector<GroupTable::Entry> groups;
  int64_t chunks = 0;
  bool wide = false;

  Plan(const std::vector<MagnitudeTensor>& list, int64_t count) {
    const std::vector<int64_t> sizes = check_groups(list, count);
    for (int64_t g = 0; g < count; ++g) groups.push_back({{nullptr}, 1, {0, 0, sizes[g], int32_t(g), false, false}});
    for (const MagnitudeTensor& x : list) {
      groups[x.group].extra.chunks += ceil_div(x.size, kChunk);
      groups[x.group].extra.wide |= x.dtype == DType::kFloat32, groups[x.group].extra.half |= x.dtype == DType::kFloat16;
    }
    std::vector<int64_t> numbers(count, 0);
    for (const MagnitudeTensor& x : list) {
      const bool aligned = reinterpret_cast<uintptr_t>(x.data) % 16 == 0;
      const ChunkExtra extra{numbers[x.group], x.group, x.dtype, groups[x.group].extra.wide, aligned};
      tensors.push_back({{const_cast<void*>(x.data)}, x.size, extra});
      numbers[x.group] += x.size;
    }
    std::stable_sort(tensors.begin(), tensors.end(),
                     [](const auto& a, const auto& b) { return a.extra.group < b.extra.group; });
    number();
  }

  /// The part whose groups have float32.
  Plan only_wide() const {
    Plan out = *this;
    std::erase_if(out.tensors, [](const auto& x) { return !x.extra.wide; });
    std::erase_if(out.groups, [](const auto& x) { return !x.extra.wide; });
    out.number();
    return out;
  }

  template <class Kernel, class... Arguments>
  void on_groups(const char* name, const CudaContext& context, Kernel kernel, const Arguments&... arguments) const {
    launch_tables<GroupTable>(groups, 1, [&](const GroupTable& table, unsigned blocks) {
      simt::check(simt::launch(kernel, dim3(blocks), dim3(kThreads), 0, static_cast<cudaStream_t>(context.stream), table,
                               arguments...),
                  name);
    });
  }

  /// launch(table, blocks, number of the first chunk)
  template <class Launch>
  void on_chunks(const char* name, Launch&& launch) const {
    int64_t first = 0;
    launch_tables<Table>(tensors, kChunk, [&](const Table& table, unsigned blocks) {
      simt::check(launch(table, blocks, first), name);
      first += blocks;
    });
  }

 private:
  void number() {
    chunks = 0, wide = false;
    for (GroupTable::Entry& group : groups) {
      group.extra.first_chunk = chunks;
      chunks += group.extra.chunks, wide |= group.extra.wide;
    }
  }
};

void clear(const char* name, int64_t* counts, int64_t size, const CudaContext& context) {
  if (size == 0) return;
  const int64_t blocks = std::min<int64_t>(ceil_div(size, 4 * kThreads), 4096);
  simt::check(simt::launch(magnitude_clear_kernel, dim3(unsigned(blocks)), dim3(kThreads), 0,
                           static_cast<cudaStream_t>(context.stream), counts, size),
              name);
}

void count(const char* name, const Plan& plan, ChunkArguments a, bool lower, const CudaContext& context) {
  const auto kernel = lower ? magnitude_lower_kernel : magnitude_upper_kernel;
  plan.on_chunks(name, [&](const Table& table, unsigned blocks, int64_t first) {
    a.first_chunk = first;
    return simt::launch(kernel, dim3(blocks), dim3(kThreads), lower ? 0 : kWords * sizeof(uint32_t),
                        static_cast<cudaStream_t>(context.stream), table, a);
  });
}

template <class T>
T* scratch_of(const CudaContext& context, int64_t size) {
  return static_cast<T*>(context.workspace.get(context.workspace.self, std::max<int64_t>(1, size) * int64_t(sizeof(T))));
}

}  // namespace

void magnitude_histogram_cuda(const std::vector<MagnitudeTensor>& tensors, int64_t groups, const HistogramOutput& out,
                              const CudaContext& context) {
  const char* name = "magnitude_histogram";
  const Plan plan(tensors, groups);
  const int64_t columns = out.bins ? kLowerBins : kUpperBins;
  const ChunkArguments a{out.counts, columns, scratch_of<double>(context, plan.chunks), out.bins, 0};
  clear(name, out.counts, groups * columns, context);
  count(name, plan, a, out.bins != nullptr, context);
  plan.on_groups(name, context, magnitude_squares_kernel, a, out.squares);
}

void squared_norms_cuda(const std::vector<MagnitudeTensor>& tensors, int64_t groups, double* squares,
                        const CudaContext& context) {
  const char* name = "squared_norms";
  const Plan plan(tensors, groups);
  ChunkArguments a{nullptr, 0, scratch_of<double>(context, plan.chunks), nullptr, 0};
  plan.on_chunks(name, [&](const Table& table, unsigned blocks, int64_t first) {
    a.first_chunk = first;
    return simt::launch(squared_norms_kernel, dim3(blocks), dim3(kThreads), 0, static_cast<cudaStream_t>(context.stream),
                        table, a);
  });
  plan.on_groups(name, context, magnitude_squares_kernel, a, squares);
}

void kth_magnitude_cuda(const std::vector<MagnitudeTensor>& tensors, int64_t groups, const KthOutput& out,
                        const CudaContext& context) {
  const char* name = "kth_magnitude";
  const Plan plan(tensors, groups);
  const int64_t columns = plan.wide ? kLowerBins : kUpperBins;  // both levels of a group lie in one place
  const KthArguments a{out,
                       groups,
                       columns,
                       scratch_of<int64_t>(context, groups * columns),
                       scratch_of<double>(context, plan.chunks),
                       scratch_of<int32_t>(context, groups),
                       scratch_of<GroupState>(context, groups),
                       scratch_of<TieChunk>(context, out.exact ? plan.chunks : 0)};
  const ChunkArguments chunks{a.counts, columns, a.squares, a.bins, 0};
  clear(name, a.counts, groups * columns, context);
  count(name, plan, chunks, false, context);
  plan.on_groups(name, context, kth_upper_kernel, a);
  if (plan.wide) {
    const Plan wide = plan.only_wide();
    count(name, wide, chunks, true, context);
    wide.on_groups(name, context, kth_lower_kernel, a);
  }
  if (!out.exact) return;
  plan.on_chunks(name, [&](const Table& table, unsigned blocks, int64_t first) {
    return simt::launch(magnitude_ties_kernel, dim3(blocks), dim3(kThreads), 0, static_cast<cudaStream_t>(context.stream),
                        table, a, first);
  });
  plan.on_groups(name, context, kth_cut_kernel, a);
}

}  // namespace longspan::kernels
