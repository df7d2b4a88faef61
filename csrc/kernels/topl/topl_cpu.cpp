// The keys that queries keep, as thresholds and as lists; see topl.h.
#include "topl/rows.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {
namespace {

/// How many of scores [count], a multiple of kCodeGroup, are at least `least`.
int64_t count_from(const int16_t* scores, int64_t count, int16_t least) {
  constexpr int64_t kPart = 16384;  // elements of one lane before its 16 bits could overflow
  int64_t total = 0;
  for (int64_t i = 0; i < count;) {
    const int64_t end = std::min(count, i + kPart * kHalves);
    Shorts found{};
    for (; i < end; i += kHalves) found -= load_shorts(scores + i) >= least;
    for (int lane = 0; lane < kHalves; ++lane) total += found[lane];
  }
  return total;
}

/// The key whose score is the `wanted`-th of those equal to `score`, from the last one on.
int64_t from_the_end(const int16_t* scores, int64_t count, int16_t score, int64_t wanted) {
  for (int64_t g = count - kCodeGroup; g >= 0; g -= kCodeGroup) {
    Shorts equal{};
    for (int i = 0; i < kCodeGroup; i += kHalves) equal -= load_shorts(scores + g + i) == score;
    int64_t found = 0;
    for (int lane = 0; lane < kHalves; ++lane) found += equal[lane];
    if (found < wanted) {
      wanted -= found;
      continue;
    }
    for (int64_t i = kCodeGroup - 1; i >= 0; --i)
      if (scores[g + i] == score && --wanted == 0) return g + i;
  }
  return 0;
}

struct Threshold {
  int threshold;
  int64_t cut, kept;
};

template <class Worker>
Threshold threshold_of(Worker& worker, int64_t row, int64_t budget, int highest, int none) {
  const Reach reach = worker.reach(row);
  const int64_t others = reach.reachable - reach.near, wanted = std::min(budget, reach.reachable) - reach.near;
  if (wanted <= 0) return {none, 0, reach.near};
  if (wanted >= others) return {kKeepsAll, 0, reach.reachable};
  worker.score(reach);
  const int64_t begin = reach.begin * kCodeGroup, count = (reach.end - reach.begin) * kCodeGroup;
  const int16_t* scores = worker.scores() + begin;
  int low = 0, high = highest + 1;  // enough of them at `low`, too few at `high`
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (count_from(scores, count, int16_t(middle)) >= wanted ? low : high) = middle;
  }
  const int64_t above = count_from(scores, count, int16_t(low + 1));
  return {low, begin + from_the_end(scores, count, int16_t(low), wanted - above), reach.near + wanted};
}

/// Runs `body(worker, b, h, tile)` for the rows of every tile.
template <class S, class F>
void each_tile(const ToplSpec& spec, const ToplTensors& io, const Context& context, F&& body) {
  const Rows<S> rows(spec, io, context);
  parallel_for(context, spec.B * spec.H * rows.tiles(), [&](int64_t task, int worker) {
    const int64_t tile = rows.tiles() - 1 - task / (spec.B * spec.H), bh = task % (spec.B * spec.H);  // late rows cost most
    typename Rows<S>::Worker at(rows, worker);
    at.tile(bh / spec.H, bh % spec.H, tile);
    body(at, bh * spec.T + tile * kTableRows, rows.rows_of(tile));
  });
}

template <class F>
void of_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat32: return f(float());
    case DType::kFloat64: return f(double());
    case DType::kBFloat16: return f(bfloat16());
    case DType::kFloat16: return;  // dispatch_cpu.cpp refuses it
  }
}

}  // namespace

void topl_threshold(const ToplSpec& spec, const ToplTensors& io, const ToplThreshold& out, const Context& context) {
  const Scorer scorer = io.selection.scorer;
  const int highest = int(io.selection.codebook.subspaces) * (scorer == Scorer::kMatch ? 1 : 255);
  of_dtype(io.q.dtype, [&]<class S>(S) {
    each_tile<S>(spec, io, context, [&](auto& worker, int64_t first, int64_t count) {
      for (int64_t i = 0; i < count; ++i) {
        const Threshold found = threshold_of(worker, i, spec.budget, highest, keeps_none(scorer));
        if (scorer == Scorer::kMatch)
          static_cast<int8_t*>(out.threshold)[first + i] = int8_t(found.threshold);
        else
          static_cast<int16_t*>(out.threshold)[first + i] = int16_t(found.threshold);
        out.cut[first + i] = int32_t(found.cut), out.kept[first + i] = int32_t(found.kept);
      }
    });
  });
}

void topl_indices(const ToplSpec& spec, const ToplTensors& io, int64_t slots, int32_t* indices, const Context& context) {
  of_dtype(io.q.dtype, [&]<class S>(S) {
    each_tile<S>(spec, io, context, [&](auto& worker, int64_t first, int64_t count) {
      for (int64_t i = 0; i < count; ++i) {
        const int threshold = threshold_at(io.selection, first + i), cut = io.selection.cut[first + i];
        const Reach reach = worker.reach(i);
        worker.score(reach);
        int32_t* list = indices + (first + i) * slots;
        int64_t used = 0;
        const int64_t end = std::min(reach.end * kCodeGroup, spec.S);
        for (int64_t key = reach.begin * kCodeGroup; key < end && used < slots; ++key) {
          const int score = worker.scores()[key];
          if (score == kNear || (score >= 0 && (score > threshold || (score == threshold && key >= cut))))
            list[used++] = int32_t(key);
        }
        std::fill(list + used, list + slots, -1);
      }
    });
  });
}

void adc_table(const ToplSpec& spec, const ToplTensors& io, uint8_t* tables, const Context& context) {
  const int64_t bytes = table_bytes(io.selection.codebook), tiles = ceil_div(spec.T, kTableRows);
  of_dtype(io.q.dtype, [&]<class S>(S) {
    using T = Compute<S>;
    const Codebook& codebook = io.selection.codebook;
    const auto lanes = CodewordLanes<T>::of(
        codebook, static_cast<T*>(context.workspace.get(context.workspace.self,
                                                        CodewordLanes<T>::elements(codebook) * int64_t(sizeof(T)))));
    parallel_for(context, spec.B * spec.H * tiles, [&](int64_t task, int) {
      const int64_t bh = task / tiles, first = task % tiles * kTableRows, h = bh % spec.H;
      const S* q =
          static_cast<const S*>(io.q.data) + bh / spec.H * io.q.stride[0] + h * io.q.stride[1] + first * io.q.stride[2];
      adc_tables<S>(codebook, lanes, h / (spec.H / codebook.groups), q, io.q.stride[2], std::min(kTableRows, spec.T - first),
                    io.q.size[3], tables + (bh * spec.T + first) * bytes);
    });
  });
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
