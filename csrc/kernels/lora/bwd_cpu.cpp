// Backward of linear maps with adapters on the CPU; see lora.h.
#include "common/gemm.h"
#include "lora/adapters.h"

namespace longspan::kernels {
namespace {

/// A sum over panels of rows of X^T [g | 1], and where its columns go.
struct ThinSums {
  int64_t width = 0, columns = 0, chunks = 0;
  void* data = nullptr;

  ThinSums(int64_t rows, int64_t wide, int64_t thin, DType statistics, const Context& context)
      : width(wide), columns(thin), chunks(low_rank_chunks(rows, thin)) {
    const int64_t elements = chunks * width * low_rank_stride(columns);
    data = lora_scratch(context, elements, statistics);
    std::memset(data, 0, size_t(elements * element_size(statistics)));
  }

  /// Columns [first, first + rank) to a matrix of strides to_k over the wide side and to_r over the thin one.
  void store(int64_t first, int64_t rank, double scale, DType statistics, void* to, DType dtype, int64_t to_k, int64_t to_r,
             const Context& context) const {
    low_rank_result_cpu(
        {data, chunks, width, low_rank_stride(columns), first, rank, scale, statistics, to, dtype, to_k, to_r}, context);
  }
};

/// The gradient of a weight over panels: in its own memory, or in floats when bfloat16 is summed over several panels.
struct WeightSums {
  View<2> out, sums;

  WeightSums(const View<2>& dweight, bool one_panel, const Context& context) : out(dweight), sums(dweight) {
    if (!out.data || out.dtype != DType::kBFloat16 || one_panel) return;
    sums = lora_matrix(lora_scratch(context, out.size[0] * out.size[1], DType::kFloat32), DType::kFloat32, out.size[0],
                       out.size[1]);
  }
  void add(const View<2>& dy, const View<2>& z, bool first, const Context& context) const {
    if (!out.data) return;
    gemm_cpu({true, false, out.size[0], out.size[1], dy.size[0], dy.data, dy.stride[0], z.data, z.stride[0],
              first ? 0.0 : 1.0, sums.data, sums.stride[0], dy.dtype, z.dtype, sums.dtype},
             context);
  }
  void finish(const Context& context) const {
    if (sums.data != out.data) cast_cpu(sums, 1, out, context);
  }
};

void clear(void* data, int64_t count, DType dtype) {
  if (data) std::memset(data, 0, size_t(count * element_size(dtype)));
}
void clear(const View<2>& x) {
  for (int64_t i = 0; x.data && i < x.size[0]; ++i) clear(lora_row(x, i), x.size[1], x.dtype);
}

class Backward {
 public:
  Backward(const LoraInput& in, const LoraProjection* projections, const LoraGradient* gradients,
           const LoraInputGradient& input_gradient, const void* s, int64_t count, const Context& context)
      : in_(in),
        projections_(projections),
        gradients_(gradients),
        dx_(input_gradient),
        count_(count),
        context_(context),
        adapters_(in, projections, count),
        all_s_(lora_matrix(const_cast<void*>(s), statistics_, T_, adapters_.columns)) {}

  void run() {
    for (int64_t i = 0; i < count_; ++i) {
      const LoraGradient& g = gradients_[i];
      const bool silent = !g.dy.data || T_ == 0;  // no gradient arrives: those of the parameters are zero
      if (silent) {
        clear(g.dweight), clear(g.dbias, projections_[i].weight.size[0], in_.x.dtype), clear(g.dlora_b);
        if (T_ == 0) clear(g.dlora_a);
      }
      any_da_ |= g.dlora_a.data != nullptr;
      any_dw_ |= g.dweight.data != nullptr && !silent;
    }
    clear(dx_.dnorm_weight, T_ ? 0 : C_, in_.norm_dtype), clear(dx_.dnorm_bias, T_ ? 0 : C_, in_.norm_dtype);
    if (T_ == 0) return;
    const bool input_wanted = dx_.dx.data || dx_.dnorm_weight || dx_.dnorm_bias;
    const bool z_wanted = any_da_ || any_dw_, wide = input_wanted && needs_wide_dz();
    const int64_t panel_rows = lora_panel_rows(T_, !(in_.normed && z_wanted) && !wide && !(in_.normed && input_wanted));
    reserve(panel_rows, z_wanted, input_wanted, wide);
    for (int64_t t0 = 0; t0 < T_; t0 += panel_rows) run_panel(t0, std::min(panel_rows, T_ - t0), z_wanted, input_wanted);
    finish();
  }

 private:
  /// Whether dz is summed in statistics over more than one product.
  bool needs_wide_dz() const {
    int64_t products = 0;
    for (int64_t i = 0; i < count_; ++i) products += gradients_[i].dy.data != nullptr;
    return in_.x.dtype == DType::kBFloat16 && (products > 1 || in_.dropout > 0);
  }

  void reserve(int64_t panel_rows, bool z_wanted, bool input_wanted, bool wide) {
    const DType S = in_.x.dtype;
    if (in_.normed && z_wanted) {
      z_panel_ = lora_scratch(context_, panel_rows * C_, S);
      row_statistics_[0] = lora_scratch(context_, panel_rows, statistics_);
      row_statistics_[1] = lora_scratch(context_, panel_rows, statistics_);
    }
    if (input_wanted && (in_.normed || !dx_.dx.data)) dz_panel_ = lora_scratch(context_, panel_rows * C_, S);
    if (wide) wide_panel_ = lora_scratch(context_, panel_rows * C_, statistics_);
    if (adapters_.columns) {
      ds_ = lora_matrix(lora_scratch(context_, panel_rows * adapters_.columns, statistics_), statistics_, panel_rows,
                        adapters_.columns);
      factors_ = adapters_.factors(context_);
      if (any_da_) da_.emplace_back(panel_rows, C_, adapters_.columns, statistics_, context_);
    }
    for (int64_t i = 0; i < count_; ++i) {
      const LoraGradient& g = gradients_[i];
      scaled_b_.push_back(adapters_.rank[i] ? adapters_.scaled_b(i, 0, context_) : View<2>{});
      const int64_t thin = (g.dlora_b.data ? adapters_.rank[i] : 0) + (g.dbias != nullptr);
      db_.emplace_back(panel_rows, g.dy.data && thin ? projections_[i].weight.size[0] : 0, std::max<int64_t>(thin, 1),
                       statistics_, context_);
      dweights_.emplace_back(g.dweight, panel_rows >= T_, context_);
    }
    void* const wanted[2] = {dx_.dnorm_weight, dx_.dnorm_bias};
    for (int which = 0; which < 2; ++which)
      if (wanted[which]) {
        norm_part_[which] = lora_scratch(context_, C_, statistics_), norm_sums_[which].assign(size_t(C_), 0.0);
      }
    if (in_.normed && in_.norm_weight) {  // in statistics, so that the sums of panels are rounded once
      norm_weight_ = lora_scratch(context_, C_, statistics_);
      cast_cpu(lora_matrix(const_cast<void*>(in_.norm_weight), in_.norm_dtype, 1, C_), 1,
               lora_matrix(norm_weight_, statistics_, 1, C_), context_);
    }
  }

  void run_panel(int64_t t0, int64_t rows, bool z_wanted, bool input_wanted) {
    const View<2> ds = adapters_.columns ? lora_rows(ds_, 0, rows) : View<2>{};
    for (int64_t i = 0; i < count_; ++i) adapter_gradients(i, t0, rows, ds);
    if (z_wanted) {
      // The norm is made again; rstd and mean are those of the forward, bit for bit.
      const View<2> z = adapters_.z(t0, rows, z_panel_, row_statistics_[0], row_statistics_[1], steps_.next());
      if (any_da_)
        low_rank_pass_cpu({.x = z,
                           .first_row = t0,
                           .dropout = in_.dropout,
                           .parts = adapters_.parts,
                           .parts_count = adapters_.parts_count,
                           .factor = nullptr,
                           .factor_k = 0,
                           .factor_r = 0,
                           .out = nullptr,
                           .ld_out = 0,
                           .g = ds.data,
                           .ld_g = ds.stride[0],
                           .ones = false,
                           .sums_wanted = true,
                           .sums = da_[0].data},
                          steps_.next());
      for (int64_t i = 0; i < count_; ++i)
        if (gradients_[i].dy.data)
          dweights_[size_t(i)].add(lora_rows(gradients_[i].dy, t0, rows), z, t0 == 0, steps_.next());
    }
    if (input_wanted) input_gradient(t0, rows, ds);
  }

  /// ds of one projection, and its share of dB and of the bias's gradient, from one read of dy.
  void adapter_gradients(int64_t i, int64_t t0, int64_t rows, const View<2>& ds) {
    const LoraGradient& g = gradients_[i];
    const int64_t rank = adapters_.rank[i];
    const View<2> ds_i = rank ? adapters_.columns_of(ds, i) : View<2>{};
    if (!g.dy.data) {
      for (int64_t t = 0; rank && t < rows; ++t) clear(lora_row(ds_i, t), rank, statistics_);
      return;
    }
    const bool db = g.dlora_b.data, bias = g.dbias != nullptr;
    if (rank == 0 && !bias) return;
    const LowRankPart part{0, rank, 0}, bias_only{0, 0, 0};
    const auto pass = [&](const LowRankPart& columns, bool product, bool sums, bool with_b) {
      const View<2> s_i = with_b ? adapters_.columns_of(lora_rows(all_s_, t0, rows), i) : View<2>{};
      low_rank_pass_cpu({.x = lora_rows(g.dy, t0, rows),
                         .first_row = 0,
                         .dropout = 0,
                         .parts = &columns,
                         .parts_count = 1,
                         .factor = product ? scaled_b_[size_t(i)].data : nullptr,
                         .factor_k = rank,
                         .factor_r = 1,
                         .out = ds_i.data,
                         .ld_out = ds_i.stride[0],
                         .g = s_i.data,
                         .ld_g = s_i.stride[0],
                         .ones = sums && bias,
                         .sums_wanted = sums,
                         .sums = db_[size_t(i)].data},
                        steps_.next());
    };
    if (!db && bias && rank) {  // a bias that trains beside a B that does not
      pass(part, true, false, false);
      pass(bias_only, false, true, false);
    } else {
      pass(rank ? part : bias_only, rank > 0, db || bias, db);
    }
  }

  void input_gradient(int64_t t0, int64_t rows, const View<2>& ds) {
    const DType S = in_.x.dtype;
    const View<2> to = dz_panel_ ? lora_matrix(dz_panel_, S, rows, C_) : lora_rows(dx_.dx, t0, rows);
    const View<2> dz = wide_panel_ ? lora_matrix(wide_panel_, statistics_, rows, C_) : to;
    bool first = true;
    for (int64_t i = 0; i < count_; ++i) {
      if (!gradients_[i].dy.data) continue;
      const View<2> dy = lora_rows(gradients_[i].dy, t0, rows), &w = projections_[i].weight;
      GemmTail tail;
      if (adapters_.rank[i] && in_.dropout == 0) {
        const View<2> ds_i = adapters_.columns_of(ds, i);
        tail = {ds_i.data, ds_i.stride[0], a_of(i), C_, adapters_.rank[i]};
      }
      gemm_cpu({false, false, rows, C_, w.size[0], dy.data, dy.stride[0], w.data, w.stride[0], first ? 0.0 : 1.0, dz.data,
                dz.stride[0], dy.dtype, w.dtype, dz.dtype},
               steps_.next(), tail);
      first = false;
    }
    if (first) clear(dz);
    for (int64_t i = 0; i < count_ && in_.dropout > 0; ++i) {
      if (!adapters_.rank[i] || !gradients_[i].dy.data) continue;
      const View<2> ds_i = adapters_.columns_of(ds, i);
      low_rank_update_cpu(
          {ds_i.data, ds_i.stride[0], a_of(i), adapters_.rank[i], dz, t0, in_.dropout, uint64_t(in_.seeds[i])},
          steps_.next());
    }
    if (wide_panel_) cast_cpu(dz, 1, to, context_);
    if (in_.normed) through_the_norm(t0, rows, to);
  }

  const void* a_of(int64_t i) const {
    return static_cast<const char*>(factors_) + adapters_.first[i] * C_ * element_size(statistics_);
  }

  void through_the_norm(int64_t t0, int64_t rows, const View<2>& dz) {
    const View<2> dx = dx_.dx.data ? lora_rows(dx_.dx, t0, rows) : dz;
    norm_bwd_cpu(in_.norm,
                 {dz,
                  {},
                  lora_rows(in_.x, t0, rows),
                  norm_weight_,
                  statistics_,
                  adapters_.at(in_.rstd, t0),
                  adapters_.at(in_.mean, t0),
                  dx,
                  norm_part_[0],
                  norm_part_[1]},
                 steps_.next());
    for (int which = 0; which < 2; ++which)
      for (int64_t c = 0; norm_part_[which] && c < C_; ++c)
        norm_sums_[which][size_t(c)] += statistics_ == DType::kFloat64 ? static_cast<const double*>(norm_part_[which])[c]
                                                                       : static_cast<const float*>(norm_part_[which])[c];
  }

  void finish() {
    for (int64_t i = 0; i < count_; ++i) {
      const LoraGradient& g = gradients_[i];
      const int64_t rank = adapters_.rank[i], N = projections_[i].weight.size[0];
      const int64_t b_columns = g.dlora_b.data ? rank : 0;
      if (g.dy.data) {
        if (b_columns)
          db_[size_t(i)].store(0, rank, projections_[i].scaling, statistics_, g.dlora_b.data, g.dlora_b.dtype,
                               g.dlora_b.stride[0], 1, context_);
        if (g.dbias) db_[size_t(i)].store(b_columns, 1, 1, statistics_, g.dbias, in_.x.dtype, 1, N, context_);
        if (g.dweight.data) dweights_[size_t(i)].finish(context_);
      }
      if (g.dlora_a.data && rank)
        da_[0].store(adapters_.first[i], rank, 1, statistics_, g.dlora_a.data, g.dlora_a.dtype, 1, g.dlora_a.stride[0],
                     context_);
    }
    void* const to[2] = {dx_.dnorm_weight, dx_.dnorm_bias};
    for (int which = 0; which < 2; ++which) {
      for (int64_t c = 0; to[which] && c < C_; ++c) {
        const double sum = norm_sums_[which][size_t(c)];
        if (statistics_ == DType::kFloat64)
          static_cast<double*>(norm_part_[which])[c] = sum;
        else
          static_cast<float*>(norm_part_[which])[c] = float(sum);
      }
      if (to[which])
        cast_cpu(lora_matrix(norm_part_[which], statistics_, 1, C_), 1, lora_matrix(to[which], in_.norm_dtype, 1, C_),
                 context_);
    }
  }

  const LoraInput& in_;
  const LoraProjection* projections_;
  const LoraGradient* gradients_;
  const LoraInputGradient& dx_;
  const int64_t count_;
  const Context& context_;
  Steps steps_{context_};
  const LoraAdapters adapters_;
  const int64_t T_ = in_.x.size[0], C_ = in_.x.size[1];
  const DType statistics_ = statistics_dtype(in_.x.dtype);
  const View<2> all_s_;
  View<2> ds_;
  void *factors_ = nullptr, *z_panel_ = nullptr, *dz_panel_ = nullptr, *wide_panel_ = nullptr;
  void* row_statistics_[2] = {};
  void *norm_weight_ = nullptr, *norm_part_[2] = {};
  std::vector<double> norm_sums_[2];
  std::vector<View<2>> scaled_b_;
  std::vector<ThinSums> db_, da_;
  std::vector<WeightSums> dweights_;
  bool any_da_ = false, any_dw_ = false;
};

}  // namespace

void lora_linear_bwd_cpu(const LoraInput& in, const LoraProjection* projections, const LoraGradient* gradients,
                         const LoraInputGradient& input_gradient, const void* s, int64_t count, const Context& context) {
  Backward(in, projections, gradients, input_gradient, s, count, context).run();
}

}  // namespace longspan::kernels
