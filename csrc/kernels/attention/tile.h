#pragma once
// Steps on one [query tile x columns] block of scores that forward and backward share. Only for per-ISA sources.
#include "attention/bounds.h"
#include "common/block_gemm.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {

inline constexpr int kScoreStride = kKeyTile + 16;  // off a power of two, so that rows do not share cache sets

/// Hands out parts of one worker's scratch, 64-byte aligned. With null memory it only measures.
class Arena {
 public:
  explicit Arena(char* memory) : memory_(memory) {}
  template <class T>
  T* take(int64_t count) {
    T* out = memory_ ? reinterpret_cast<T*>(memory_ + used_) : nullptr;
    used_ += round_up(count * int64_t(sizeof(T)), 64);
    return out;
  }
  int64_t used() const { return used_; }

 private:
  char* memory_;
  int64_t used_ = 0;
};

template <class S>
inline S* row_of(const View<4>& x, int64_t b, int64_t h, int64_t t) {
  return static_cast<S*>(x.data) + b * x.stride[0] + h * x.stride[1] + t * x.stride[2];
}

/// Row bounds of up to kQueryTile rows.
struct TileRows {
  RowBounds row[kQueryTile];

  void load(const Pattern& pattern, const Bounds& bounds, int64_t batch, int64_t first, int64_t count, bool shifted) {
    const Layout& q = bounds.queries;
    const int64_t base = (bounds.query_layouts == 1 ? 0 : batch * q.batch_stride) + first;
    for (int64_t i = 0; i < count; ++i)
      row[i] = row_bounds(pattern, q.doc[base + i], q.pos[base + i], q.flag ? q.flag[base + i] : 0, shifted);
  }
};

/// Sets scores of invisible pairs to -inf in the steps that `columns.masked` names, and beyond the last key.
template <class T>
inline void mask_scores(const Bounds& bounds, const TileRows& rows, const Columns& columns, int64_t batch, int64_t key_begin,
                        int64_t keys, int64_t count, T* scores) {
  const Layout& k = bounds.keys;
  const int64_t base = (bounds.key_layouts == 1 ? 0 : batch * k.batch_stride) + key_begin;
  for (int c = columns.first; c < columns.last; c += kKeyStep) {
    const int valid = int(keys - key_begin - c < kKeyStep ? keys - key_begin - c : kKeyStep);
    const bool cut = valid < kKeyStep;
    if (!cut && !(columns.masked >> (c / kKeyStep) & 1)) continue;
    const int32_t *doc = k.doc + base + c, *pos = k.pos + base + c, *flag = k.flag ? k.flag + base + c : nullptr;
    for (int64_t i = 0; i < count; ++i) {
      const RowBounds row = rows.row[i];
      T* s = scores + i * kScoreStride + c;
      const int32_t always = row.global ? 1 : 0, sinks = bounds.sinks;
      if (cut || flag) {
        for (int j = 0; j < kKeyStep; ++j)
          if (j >= valid || !visible(row, sinks, doc[j], pos[j], flag ? flag[j] : 0)) s[j] = kMinusInfinity<T>;
      } else {
        for (int j = 0; j < kKeyStep; ++j) {  // vectorised by the compiler
          const int32_t ok = int32_t(doc[j] == row.doc) & int32_t(doc[j] >= 0) & int32_t(pos[j] >= row.floor) &
                             int32_t(pos[j] <= row.ceiling) &
                             (int32_t(pos[j] >= row.low) | int32_t(pos[j] < sinks) | always);
          s[j] = ok ? s[j] : kMinusInfinity<T>;
        }
      }
    }
  }
}

/// Turns scores x (already divided by the soft-cap) into base-2 logits `cap * tanh(x)`; keeps 1 - tanh(x)^2 when asked.
template <class T>
inline void cap_scores(const Columns& columns, int64_t count, T cap_base2, T* scores, T* slope) {
  for (int64_t i = 0; i < count; ++i)
    for (int c = columns.first; c < columns.last; c += kLanes<T>) {
      const Vec<T> t = tanh<T>(load(scores + i * kScoreStride + c));
      store(scores + i * kScoreStride + c, t * cap_base2);
      if (slope) store(slope + i * kScoreStride + c, T(1) - t * t);
    }
}

/// How scores relate to the plain products q.k: queries are multiplied by `query` when they are copied, so that scores
/// come out in base-2 units (or divided by the soft-cap).
template <class T>
struct Scales {
  T query, cap, key_gradient;
  explicit Scales(const AttentionSpec& spec) {
    constexpr double log2e = 1.4426950408889634074;
    cap = T(spec.softcap * log2e);
    query = T(spec.softcap > 0 ? spec.scale / spec.softcap : spec.scale * log2e);
    key_gradient = T(spec.softcap > 0 ? spec.softcap : 1 / log2e);  // query * key_gradient = scale
  }
};

/// Copies `count` rows of D elements, times `factor`, into rows of D; the rows up to kQueryTile are zero.
template <class T, class S>
inline void copy_rows(const S* src, int64_t stride, int64_t count, int64_t dim, T factor, T* dst) {
  for (int64_t i = 0; i < count; ++i)
    for (int64_t d = 0; d < dim; ++d) dst[i * dim + d] = load_as<T>(src + i * stride + d) * factor;
  for (int64_t i = count * dim; i < kQueryTile * dim; ++i) dst[i] = T(0);
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
