// Forward of linear maps with adapters on the CPU; see lora.h.
#include "common/gemm.h"
#include "lora/adapters.h"

namespace longspan::kernels {
namespace {

/// What one projection adds to its product: p [rows, rank + 1] op(q) = [s | 1] [scaling B | b]^T.
struct Tail {
  View<2> q;
  int64_t rank;
  bool bias;

  Tail(const LoraAdapters& adapters, int64_t i, const Context& context)
      : rank(adapters.rank[i]), bias(adapters.projections[i].bias) {
    if (rank + bias == 0) return;
    q = adapters.scaled_b(i, bias, context);
    if (!bias) return;
    View<2> last = q;
    last.data = static_cast<char*>(q.data) + rank * element_size(q.dtype), last.size[1] = 1;
    const View<2> b{const_cast<void*>(adapters.projections[i].bias), adapters.in.x.dtype, {q.size[0], 1}, {1, 1}};
    cast_cpu(b, 1, last, context);
  }

  /// The tail of rows whose s is given; with a bias p is `own` [rows, rank + 1], which it fills.
  GemmTail of(const View<2>& s, void* own, const Context& context) const {
    if (rank + bias == 0) return {};
    if (!bias) return {s.data, s.stride[0], q.data, q.stride[0], rank};
    const int64_t rows = s.size[0];
    const View<2> p = lora_matrix(own, q.dtype, rows, rank + 1);
    View<2> left = p, right = p;
    left.size[1] = rank, right.size[1] = 1;
    right.data = static_cast<char*>(p.data) + rank * element_size(q.dtype);
    if (rank) cast_cpu(s, 1, left, context);
    const double one = 1;
    const float one_float = 1;
    const void* source = q.dtype == DType::kFloat64 ? static_cast<const void*>(&one) : &one_float;
    cast_cpu({const_cast<void*>(source), q.dtype, {rows, 1}, {0, 1}}, 1, right, context);
    return {p.data, rank + 1, q.data, q.stride[0], rank + 1};
  }
};

void copy_rows(const View<2>& from, const View<2>& to, const Context& context) {
  constexpr int64_t kRows = 64;
  parallel_for(context, ceil_div(from.size[0], kRows), [&](int64_t task, int) {
    for (int64_t i = task * kRows; i < std::min(from.size[0], (task + 1) * kRows); ++i)
      std::memcpy(lora_row(to, i), lora_row(from, i), size_t(from.size[1] * element_size(from.dtype)));
  });
}

}  // namespace

void lora_linear_fwd_cpu(const LoraInput& in, const LoraProjection* projections, const LoraOutput* outputs, void* s,
                         int64_t count, const Context& context) {
  const LoraAdapters adapters(in, projections, count);
  const int64_t T = in.x.size[0], C = in.x.size[1];
  if (T == 0) return;
  const DType statistics = adapters.statistics;
  const int64_t panel_rows = lora_panel_rows(T, !in.normed);
  void* panel = in.normed ? lora_scratch(context, panel_rows * C, in.x.dtype) : nullptr;
  void* factors = adapters.columns ? adapters.factors(context) : nullptr;
  std::vector<Tail> tails;
  int64_t widest = 0;
  for (int64_t i = 0; i < count; ++i) {
    tails.emplace_back(adapters, i, context);
    if (tails[i].bias) widest = std::max(widest, tails[i].rank + 1);
  }
  void* p = widest ? lora_scratch(context, panel_rows * widest, statistics) : nullptr;
  const View<2> all_s = lora_matrix(s, statistics, T, adapters.columns);

  Steps steps(context);
  for (int64_t t0 = 0; t0 < T; t0 += panel_rows) {
    const int64_t rows = std::min(panel_rows, T - t0);
    const View<2> z = adapters.z(t0, rows, panel, adapters.at(in.rstd, t0), adapters.at(in.mean, t0), steps.next());
    const View<2> s_rows = lora_rows(all_s, t0, rows);
    if (adapters.columns)
      low_rank_pass_cpu({.x = z,
                         .first_row = t0,
                         .dropout = in.dropout,
                         .parts = adapters.parts,
                         .parts_count = adapters.parts_count,
                         .factor = factors,
                         .factor_k = 1,
                         .factor_r = C,
                         .out = s_rows.data,
                         .ld_out = s_rows.stride[0],
                         .g = nullptr,
                         .ld_g = 0,
                         .ones = false,
                         .sums_wanted = false,
                         .sums = nullptr},
                        steps.next());
    for (int64_t i = 0; i < count; ++i) {
      const View<2> y = lora_rows(outputs[i].y, t0, rows), &w = projections[i].weight;
      const bool adds = outputs[i].residual.data != nullptr;
      if (adds) copy_rows(lora_rows(outputs[i].residual, t0, rows), y, context);
      gemm_cpu({false, true, rows, w.size[0], C, z.data, z.stride[0], w.data, w.stride[0], adds ? 1.0 : 0.0, y.data,
                y.stride[0], z.dtype, w.dtype, y.dtype},
               steps.next(), tails[size_t(i)].of(adapters.columns_of(s_rows, i), p, context));
    }
  }
}

}  // namespace longspan::kernels
