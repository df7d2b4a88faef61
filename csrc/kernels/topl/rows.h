#pragma once
// Scores of all keys that one query row can reach. Only for per-ISA sources.
#include <algorithm>

#include "attention/bounds.h"
#include "pq/score.h"
#include "topl/topl.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {

inline constexpr int64_t kTableRows = 64;  // rows whose tables are made together

/// In a row's scores, keys that are not to be chosen.
inline constexpr int16_t kUnreachable = -1, kNear = -2;

/// What one row can reach: groups [begin, end) of keys, and how many keys.
struct Reach {
  int64_t begin = 0, end = 0, reachable = 0, near = 0;
};

/// One call's codes and ranges by group of kCodeGroup keys, and the rows that are looked at with them.
template <class S>
class Rows {
 public:
  using T = Compute<S>;

  Rows(const ToplSpec& spec, const ToplTensors& io, const Context& context)
      : spec_(spec),
        selection_(io.selection),
        q_(io.q),
        groups_(ceil_div(spec.S, kCodeGroup)),
        bytes_(table_bytes(selection_.codebook)) {
    const auto get = [&](int64_t bytes) {
      return context.workspace.get(context.workspace.self, std::max<int64_t>(1, bytes));
    };
    AttentionSpec attention{};
    attention.pattern = spec.pattern, attention.queries = spec.queries, attention.keys = spec.keys;
    bounds_ = build_bounds(attention, spec.B, spec.T, spec.S, context);
    if (selection_.scorer == Scorer::kAdc)
      lanes_ = CodewordLanes<T>::of(
          selection_.codebook, static_cast<T*>(get(CodewordLanes<T>::elements(selection_.codebook) * int64_t(sizeof(T)))));
    const int64_t M = selection_.codebook.subspaces, W = code_words(M, selection_.codebook.codewords);
    codes_ = static_cast<uint8_t*>(get(spec.B * spec.K * groups_ * M * kCodeGroup));
    parallel_for(context, spec.B * spec.K, [&](int64_t head, int) {
      for (int64_t g = 0; g < groups_; ++g)
        spread_codes(selection_.codebook, selection_.key_codes + (head * spec_.S + g * kCodeGroup) * W,
                     std::min<int64_t>(kCodeGroup, spec_.S - g * kCodeGroup),
                     codes_ + (head * groups_ + g) * M * kCodeGroup);
    });
    ranges_ = static_cast<KeyRange*>(get(bounds_.key_layouts * groups_ * int64_t(sizeof(KeyRange))));
    constexpr int64_t kSteps = kCodeGroup / kKeyStep;
    for (int64_t b = 0; b < bounds_.key_layouts; ++b)
      for (int64_t g = 0; g < groups_; ++g) {
        KeyRange range = bounds_.step_range(b, g * kSteps);
        for (int64_t i = g * kSteps + 1; i < std::min((g + 1) * kSteps, bounds_.key_steps); ++i) {
          const KeyRange& more = bounds_.step_range(b, i);
          range.doc_min = std::min(range.doc_min, more.doc_min), range.doc_max = std::max(range.doc_max, more.doc_max);
          range.pos_min = std::min(range.pos_min, more.pos_min), range.pos_max = std::max(range.pos_max, more.pos_max);
          range.any_global |= more.any_global;
        }
        ranges_[b * groups_ + g] = range;
      }
    worker_ = round_up(kTableRows * bytes_, 64) + round_up(groups_ * kCodeGroup * 2, 64) + round_up(groups_ * 2, 64);
    memory_ = static_cast<char*>(get(worker_ * context.parallel.workers));
  }

  int64_t tiles() const { return ceil_div(spec_.T, kTableRows); }
  int64_t rows_of(int64_t tile) const { return std::min(kTableRows, spec_.T - tile * kTableRows); }

  /// What one worker looks with.
  class Worker {
   public:
    Worker(const Rows& rows, int worker)
        : rows_(rows),
          tables_(reinterpret_cast<uint8_t*>(rows.memory_ + worker * rows.worker_)),
          scores_(reinterpret_cast<int16_t*>(tables_ + round_up(kTableRows * rows.bytes_, 64))),
          sights_(reinterpret_cast<Sight*>(scores_ + round_up(rows.groups_ * kCodeGroup, 32))) {}

    /// Makes the tables of a tile's rows.
    void tile(int64_t b, int64_t h, int64_t tile) {
      b_ = b, head_ = b * rows_.spec_.K + h / (rows_.spec_.H / rows_.spec_.K), first_ = tile * kTableRows;
      rows_.tables(b, h, first_, rows_.rows_of(tile), tables_);
    }

    /// Looks at row `i` of the tile without any score.
    Reach reach(int64_t i) {
      const ToplSpec& spec = rows_.spec_;
      const Layout& q = rows_.bounds_.queries;
      const int64_t at = (rows_.bounds_.query_layouts == 1 ? 0 : b_ * q.batch_stride) + first_ + i;
      row_ = row_bounds(spec.pattern, q.doc[at], q.pos[at], q.flag ? q.flag[at] : 0, false);
      i_ = i;
      const KeyRange* ranges = rows_.ranges_ + (rows_.bounds_.key_layouts == 1 ? 0 : b_ * rows_.groups_);
      Reach out;
      for (int64_t g = 0; g < rows_.groups_; ++g) {
        const Sight seen = sights_[g] = sight(row_, ranges[g], spec.pattern.sinks);
        if (seen.reach == Visibility::kSkip) continue;
        if (out.end == 0) out.begin = g;
        out.end = g + 1;
        const int64_t count = std::min<int64_t>(kCodeGroup, spec.S - g * kCodeGroup);
        if (seen.reach == Visibility::kFull && seen.near != Visibility::kPartial) {
          out.reachable += count;
          out.near += seen.near == Visibility::kFull ? count : 0;
          continue;
        }
        each_key(g, [&](int64_t, bool reached, bool close) { out.reachable += reached, out.near += reached && close; });
      }
      return out;
    }

    /// Scores of the keys of groups [begin, end) of the row that was looked at last: from `scores()[begin * kCodeGroup]` on.
    void score(const Reach& reach) {
      const Codebook& codebook = rows_.selection_.codebook;
      const int64_t stride = codebook.subspaces * kCodeGroup;
      for (int64_t g = reach.begin; g < reach.end; ++g) {
        int16_t* scores = scores_ + g * kCodeGroup;
        const Sight seen = sights_[g];
        if (seen.reach == Visibility::kSkip) {
          std::fill(scores, scores + kCodeGroup, kUnreachable);
          continue;
        }
        group_scores(codebook, tables_ + i_ * rows_.bytes_, rows_.codes_ + (head_ * rows_.groups_ + g) * stride, scores);
        const bool whole = (g + 1) * kCodeGroup <= rows_.spec_.S;
        if (whole && seen.reach == Visibility::kFull && seen.near == Visibility::kSkip) continue;
        if (!whole) std::fill(scores + rows_.spec_.S - g * kCodeGroup, scores + kCodeGroup, kUnreachable);
        each_key(g, [&](int64_t i, bool reached, bool close) {
          scores[i] = !reached ? kUnreachable : close ? kNear : scores[i];
        });
      }
    }

    const int16_t* scores() const { return scores_; }
    const uint8_t* tables() const { return tables_; }

   private:
    template <class F>
    void each_key(int64_t g, F&& f) const {
      const Layout& k = rows_.bounds_.keys;
      const int64_t at = (rows_.bounds_.key_layouts == 1 ? 0 : b_ * k.batch_stride) + g * kCodeGroup;
      const int64_t count = std::min<int64_t>(kCodeGroup, rows_.spec_.S - g * kCodeGroup);
      for (int64_t i = 0; i < count; ++i)
        f(i, reachable(row_, k.doc[at + i], k.pos[at + i]),
          near(row_, rows_.spec_.pattern.sinks, k.pos[at + i], k.flag ? k.flag[at + i] : 0));
    }

    const Rows& rows_;
    uint8_t* tables_;
    int16_t* scores_;
    Sight* sights_;
    int64_t b_ = 0, head_ = 0, first_ = 0, i_ = 0;
    RowBounds row_{};
  };

  /// Tables of `count` rows of head h from row `first` on.
  void tables(int64_t b, int64_t h, int64_t first, int64_t count, uint8_t* out) const {
    const Codebook& codebook = selection_.codebook;
    if (selection_.scorer == Scorer::kMatch) {
      const int64_t W = code_words(codebook.subspaces, codebook.codewords);
      return match_tables(codebook, selection_.query_codes + ((b * spec_.H + h) * spec_.T + first) * W, count, out);
    }
    const S* q = static_cast<const S*>(q_.data) + b * q_.stride[0] + h * q_.stride[1] + first * q_.stride[2];
    adc_tables<S>(codebook, lanes_, h / (spec_.H / codebook.groups), q, q_.stride[2], count, q_.size[3], out);
  }

 private:
  const ToplSpec& spec_;
  const Selection& selection_;
  const View<4>& q_;
  int64_t groups_, bytes_, worker_ = 0;
  Bounds bounds_;
  CodewordLanes<T> lanes_{};
  uint8_t* codes_ = nullptr;
  KeyRange* ranges_ = nullptr;
  char* memory_ = nullptr;
};

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
