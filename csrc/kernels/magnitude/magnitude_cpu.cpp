// Histograms and order statistics of magnitudes; see magnitude.h.
#include <algorithm>
#include <atomic>
#include <bit>
#include <limits>
#include <numeric>

#include "magnitude/passes.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {
namespace {

constexpr int64_t kChunk = int64_t(1) << 20;  // elements of a task: emptying counters costs a thirtieth of filling them
constexpr int64_t kSmall = int64_t(1) << 22;  // elements of a group that one worker does alone

/// A part of one tensor; `number` is the group's number of its first element.
struct Chunk {
  const char* data;
  DType dtype;
  int64_t size, number;
  int32_t group;
};

/// The chunks of all groups, a group's in order and together.
struct Chunks {
  std::vector<Chunk> all;
  std::vector<int64_t> first, size;  // [G+1] of `all`, [G] elements

  Chunks(const std::vector<MagnitudeTensor>& tensors, int64_t groups) : first(groups + 1, 0), size(groups, 0) {
    for (const MagnitudeTensor& x : tensors)
      for (int64_t begin = 0; begin < x.size; begin += kChunk) {
        const int64_t count = std::min(kChunk, x.size - begin);
        const char* data = static_cast<const char*>(x.data) + begin * element_size(x.dtype);
        all.push_back({data, x.dtype, count, size[x.group], x.group});
        size[x.group] += count;
        ++first[x.group + 1];
      }
    std::partial_sum(first.begin(), first.end(), first.begin());
    std::stable_sort(all.begin(), all.end(), [](const Chunk& a, const Chunk& b) { return a.group < b.group; });
  }
};

Sums count_chunk(const Chunk& chunk, const Range& range, Squares which, uint32_t* counters) {
  return with_reader(chunk.dtype, [&]<class Reader>(Reader) {
    return count<Reader>(reinterpret_cast<const typename Reader::Raw*>(chunk.data), chunk.size, range, which, counters);
  });
}

/// `place_of` of a chunk.
int64_t place(const Chunk& chunk, uint32_t bits, int64_t& wanted) {
  return with_reader(chunk.dtype, [&]<class Reader>(Reader) {
    return place_of<Reader>(reinterpret_cast<const typename Reader::Raw*>(chunk.data), chunk.size, bits, wanted);
  });
}

/// How often the bin of a range was counted.
int64_t counted(const uint32_t* counters, const Range& range, int64_t bin) {
  return int64_t(counters[bin]) + (range.everything() ? counters[kUpperBins + bin] : 0u);
}

/// Clears a worker's counters of a range.
void clear(uint32_t* counters, const Range& range) {
  std::fill_n(counters, range.everything() ? kCounters : range.bins(), 0u);
}

/// Adds a worker's counters to shared ones and clears them.
void empty_into(uint32_t* counters, const Range& range, int64_t* counts) {
  for (int64_t i = 0; i < range.bins(); ++i)
    if (const int64_t here = counted(counters, range, i))
      std::atomic_ref<int64_t>(counts[i]).fetch_add(here, std::memory_order_relaxed);
  clear(counters, range);
}

/// Each worker's counters, zero between tasks.
class Counters {
 public:
  explicit Counters(const Context& context)
      : data_(static_cast<uint32_t*>(context.workspace.get(context.workspace.self, bytes(context)))) {
    std::fill_n(data_, bytes(context) / int64_t(sizeof(uint32_t)), 0u);
  }
  uint32_t* of(int worker) const { return data_ + worker * kCounters; }

 private:
  static int64_t bytes(const Context& context) { return context.parallel.workers * kCounters * int64_t(sizeof(uint32_t)); }
  uint32_t* data_;
};

/// The bin of the wanted-th largest element, and how many elements are in higher bins and in it.
struct Place {
  uint32_t bin;
  int64_t above, within;
};

template <class Count>
Place place_among(int64_t bins, int64_t wanted, Count&& count) {
  int64_t above = 0;
  for (int64_t bin = bins - 1; bin > 0; --bin) {
    const int64_t here = count(bin);
    if (above + here >= wanted) return {uint32_t(bin), above, here};
    above += here;
  }
  return {0, above, count(0)};
}

double square(uint32_t bits, bool half) {
  const double value = half ? Float16Bits::value(uint16_t(bits >> 16)) : Float32Bits::value(bits);
  return value * value;
}

/// Sums in the order of the chunks.
void add(const Sums& one, Sums& sums) {
  sums.above += one.above, sums.above_squares += one.above_squares, sums.squares += one.squares;
  sums.highest = std::max(sums.highest, one.highest);
}

/// A pass over a group by one worker.
struct Alone {
  const Chunk *begin, *end;
  uint32_t* counters;
  Range range{};

  Sums pass(const Range& wanted, Squares which) {
    clear(counters, range = wanted);
    Sums sums;
    for (const Chunk* chunk = begin; chunk < end; ++chunk) add(count_chunk(*chunk, range, which, counters), sums);
    return sums;
  }
  int64_t operator()(int64_t bin) const { return counted(counters, range, bin); }
  /// The group's number one past the `wanted`-th element with these bits.
  int64_t cut(uint32_t bits, int64_t wanted) const {
    for (const Chunk* chunk = begin;; ++chunk)
      if (const int64_t at = place(*chunk, bits, wanted); at >= 0) return chunk->number + at;
  }
  void finish() { clear(counters, range); }
};

/// A pass over a group by all workers; counts are shared.
struct Together {
  const Chunk *begin, *end;
  const Context& context;
  const Counters& counters;
  int64_t* counts;
  Sums* sums_of;
  int64_t* ties;

  Sums pass(const Range& range, Squares which) {
    std::fill_n(counts, range.bins(), int64_t(0));
    parallel_for(context, end - begin, [&](int64_t i, int worker) {
      sums_of[i] = count_chunk(begin[i], range, which, counters.of(worker));
      empty_into(counters.of(worker), range, counts);
    });
    Sums sums;
    for (int64_t i = 0; i < end - begin; ++i) add(sums_of[i], sums);
    return sums;
  }
  int64_t operator()(int64_t bin) const { return counts[bin]; }
  int64_t cut(uint32_t bits, int64_t wanted) const {
    constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
    parallel_for(context, end - begin, [&](int64_t i, int) {
      int64_t left = kMost;
      place(begin[i], bits, left);
      ties[i] = kMost - left;
    });
    int64_t i = 0;
    for (; ties[i] < wanted; ++i) wanted -= ties[i];
    return begin[i].number + place(begin[i], bits, wanted);
  }
  void finish() {}
};

/// Upper bins between which the wanted-th of `size` elements lies in all likelihood, from a sample: short runs, scattered so
/// that no row length of a matrix resonates with them. Everything, where a sample does not pay.
Range likely_range(const Chunk* begin, const Chunk* end, int64_t size, int64_t wanted, uint32_t* counters) {
  constexpr int64_t kLeast = 1 << 16, kSampled = 1 << 18, kShort = 16;
  if (size < kLeast) return Range::upper();
  const int64_t stride = std::max<int64_t>(16 * kShort, size * kShort / kSampled);
  const Range all = Range::upper();
  int64_t taken = 0;
  for (const Chunk* chunk = begin; chunk < end; ++chunk)
    for (int64_t first = 0, n = 0; first + stride <= chunk->size; first += stride, ++n) {
      const auto jitter = int64_t((uint64_t(chunk->number + n + 1) * 0x9e3779b97f4a7c15u >> 32) % uint64_t(stride - kShort));
      Chunk part = *chunk;
      part.data += (first + jitter) * element_size(part.dtype), part.size = kShort;
      with_reader(part.dtype, [&]<class Reader>(Reader) {
        count_all<Reader>(reinterpret_cast<const typename Reader::Raw*>(part.data), int(kShort), counters);
      });
      taken += kShort;
    }
  const double rank = double(wanted) / double(size) * double(taken), margin = 0.02 * double(taken);
  uint32_t first = 0, last = uint32_t(kUpperBins) - 1;
  int64_t above = 0, inside = 0;
  bool found_last = false;
  for (int64_t bin = kUpperBins - 1; bin >= 0; --bin) {
    const int64_t here = counted(counters, all, bin);
    if (!found_last && double(above + here) >= rank - margin) {
      found_last = true;
      if (rank > margin) last = uint32_t(bin);  // else the very largest may be wanted
    }
    above += here;
    if (found_last) inside += here;
    if (double(above) > rank + margin) {
      first = uint32_t(bin);
      break;
    }
  }
  clear(counters, all);
  return inside * 8 > taken ? all : Range::upper(first, last);
}

/// All passes over group g of `size` elements.
template <class Team>
void rank_group(Team team, int64_t groups, int64_t size, uint32_t* counters, const KthOutput& out) {
  const int32_t g = team.begin->group;
  const int64_t wanted = out.wanted[g];
  const bool half = team.begin->dtype == DType::kFloat16;
  const bool wide = std::any_of(team.begin, team.end, [](const Chunk& x) { return x.dtype == DType::kFloat32; });
  const Squares first_squares = !out.norms ? Squares::kNone : wide ? Squares::kAll : Squares::kBoth;
  Range range = likely_range(team.begin, team.end, size, wanted, counters);
  Sums sums = team.pass(range, first_squares);
  Place at = place_among(range.bins(), wanted - sums.above, team);
  if (sums.above >= wanted || sums.above + at.above + at.within < wanted) {  // the sample misled
    range = Range::upper();
    sums = team.pass(range, first_squares);
    at = place_among(range.bins(), wanted, team);
  }
  const bool finite = sums.highest < (half ? 0x7c000000u : 0x7f800000u);
  const double all_squares = out.norms || finite ? sums.squares : std::numeric_limits<double>::quiet_NaN();
  uint32_t bits = range.low + (at.bin << 16);
  if (wide) {
    range = Range::lower(bits >> 16);
    sums = team.pass(range, out.norms ? Squares::kAbove : Squares::kNone);
    at = place_among(range.bins(), wanted - sums.above, team);
    bits = range.low + at.bin;
  }
  double above_squares = sums.above_squares;
  for (int64_t bin = range.bins() - 1; out.norms && bin > at.bin; --bin)
    if (const int64_t here = team(bin))
      above_squares += double(here) * square(range.low + (uint32_t(bin) << range.shift), half);
  team.finish();

  const int64_t above = sums.above + at.above, need = wanted - above;
  const bool told_apart = out.exact && at.within > need && bits;
  const int64_t cut = told_apart ? team.cut(bits, need) : std::numeric_limits<int64_t>::max();
  const int64_t equals = bits == 0 ? 0 : out.exact ? std::min(need, at.within) : at.within;
  out.bits[g] = half ? std::bit_cast<int32_t>(float(Float16Bits::value(uint16_t(bits >> 16)))) : int32_t(bits);
  out.cut[g] = bits == 0 ? 0 : cut;
  out.kept[g] = above + equals;
  out.squares[g] = above_squares + (out.norms && equals ? double(equals) * square(bits, half) : 0.0);
  out.squares[groups + g] = all_squares;
}

/// The chunks' sums by group, in order.
void add_chunks(const Chunks& chunks, const double* sums, double* out) {
  for (size_t g = 0; g < chunks.size.size(); ++g)
    out[g] = std::accumulate(sums + chunks.first[g], sums + chunks.first[g + 1], 0.0);
}

template <class T>
T* scratch_of(const Context& context, int64_t count) {
  return static_cast<T*>(context.workspace.get(context.workspace.self, std::max<int64_t>(1, count) * int64_t(sizeof(T))));
}

}  // namespace

void magnitude_histogram(const std::vector<MagnitudeTensor>& tensors, int64_t groups, const HistogramOutput& out,
                         const Context& context) {
  const Chunks chunks(tensors, groups);
  const Counters counters(context);
  const int64_t bins = out.bins ? kLowerBins : kUpperBins;
  auto* squares = scratch_of<double>(context, int64_t(chunks.all.size()));
  std::fill_n(out.counts, groups * bins, int64_t(0));
  parallel_for(context, int64_t(chunks.all.size()), [&](int64_t i, int worker) {
    const Chunk& chunk = chunks.all[i];
    const Range range = out.bins ? Range::lower(uint32_t(out.bins[chunk.group])) : Range::upper();
    const Squares which = out.bins ? Squares::kAbove : Squares::kAll;
    const Sums sums = count_chunk(chunk, range, which, counters.of(worker));
    squares[i] = out.bins ? sums.above_squares : sums.squares;
    empty_into(counters.of(worker), range, out.counts + chunk.group * bins);
  });
  add_chunks(chunks, squares, out.squares);
}

void squared_norms(const std::vector<MagnitudeTensor>& tensors, int64_t groups, double* squares, const Context& context) {
  const Chunks chunks(tensors, groups);
  auto* sums = scratch_of<double>(context, int64_t(chunks.all.size()));
  parallel_for(context, int64_t(chunks.all.size()), [&](int64_t i, int) {
    const Chunk& chunk = chunks.all[i];
    sums[i] = with_reader(chunk.dtype, [&]<class Reader>(Reader) {
      const auto* x = reinterpret_cast<const typename Reader::Raw*>(chunk.data);
      double sum = 0;
      for (int64_t first = 0; first < chunk.size; first += kBlock)
        sum += squares_of<Reader>(x + first, int(std::min<int64_t>(kBlock, chunk.size - first)));
      return sum;
    });
  });
  add_chunks(chunks, sums, squares);
}

void kth_magnitude(const std::vector<MagnitudeTensor>& tensors, int64_t groups, const KthOutput& out,
                   const Context& context) {
  const Chunks chunks(tensors, groups);
  const Counters counters(context);
  const Chunk* all = chunks.all.data();
  std::vector<int64_t> small, large;
  for (int64_t g = 0; g < groups; ++g) (chunks.size[g] > kSmall ? large : small).push_back(g);
  if (!large.empty()) {
    auto* counts = scratch_of<int64_t>(context, kLowerBins);
    auto* sums = scratch_of<Sums>(context, int64_t(chunks.all.size()));
    auto* ties = scratch_of<int64_t>(context, int64_t(chunks.all.size()));
    for (int64_t g : large) {
      const int64_t first = chunks.first[g];
      const Together team{all + first, all + chunks.first[g + 1], context, counters, counts, sums, ties};
      rank_group(team, groups, chunks.size[g], counters.of(0), out);
    }
  }
  std::stable_sort(small.begin(), small.end(), [&](int64_t a, int64_t b) { return chunks.size[a] > chunks.size[b]; });
  parallel_for(context, int64_t(small.size()), [&](int64_t i, int worker) {
    const int64_t g = small[i], first = chunks.first[g];
    const Alone team{all + first, all + chunks.first[g + 1], counters.of(worker)};
    rank_group(team, groups, chunks.size[g], counters.of(worker), out);
  });
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
