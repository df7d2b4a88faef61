// Host side of the family on CUDA: which products make the forward and the backward; see lora.h for the contract.
//
// Rows are taken in panels of at most 8192. With a norm, z of a panel is scratch that norm_fwd_cuda writes; in the backward
// it is written again, from x, and the gradient of z of a panel goes to norm_bwd_cuda. Further scratch: adapters in S with
// padded ranks, s and ds of a panel with their parts, parts of dA and dB of about 16 chunks of rows, and float sums of dW
// where a norm and more than one panel meet. Adapters in float32 beside 16-bit
// rows count in float in s, ds, dA and dB; in the wide products they, s and ds are rounded to S, as the rows are.
#include <climits>
#include <stdexcept>

#include "lora/launch.h"
#include "lora/lora.h"

namespace longspan::kernels {
namespace {

constexpr DType kFloat = DType::kFloat32;

int64_t padded(int64_t ranks) { return round_up(ranks, kRankStep); }

/// What both directions know of a call.
class Call {
 public:
  Call(const LoraInput& in, const LoraProjection* projections, int64_t count, const CudaContext& context)
      : in_(in), projections_(projections), count_(int(count)), context_(context), dtype_(in.x.dtype) {
    if (dtype_ == DType::kFloat64)
      throw std::invalid_argument("low-rank linear maps on CUDA take float32, float16 and bfloat16, not float64");
    if (count > kLoraGroup)
      throw std::invalid_argument("low-rank linear maps take at most " + std::to_string(kLoraGroup) + " projections, not " +
                                  std::to_string(count));
    int column = 0;
    for (int i = 0; i < count_; ++i) {
      groups_[i] = {int(projections[i].lora_a.data ? projections[i].lora_a.size[0] : 0), column, int(width_), i};
      column += groups_[i].ranks, width_ += padded(groups_[i].ranks);
      wide_ = wide_ || (groups_[i].ranks && dtype_ != kFloat && projections[i].lora_a.dtype == kFloat);
    }
    ranks_ = column;
  }

 protected:
  template <class T>
  T* scratch(int64_t elements) const {
    return static_cast<T*>(bytes(elements * int64_t(sizeof(T))));
  }
  /// Of S.
  void* rows_scratch(int64_t rows, int64_t columns) const { return bytes(rows * columns * element_size(dtype_)); }
  void* bytes(int64_t count) const { return count ? context_.workspace.get(context_.workspace.self, count) : nullptr; }

  static void* at(const View<2>& x, int64_t row) {
    return x.data ? static_cast<char*>(x.data) + row * x.stride[0] * element_size(x.dtype) : nullptr;
  }
  static View<2> rows_of(const View<2>& x, int64_t row, int64_t rows) {
    return {at(x, row), x.dtype, {rows, x.size[1]}, {x.stride[0], x.stride[1]}};
  }
  static float* from(void* statistics, int64_t row) { return statistics ? static_cast<float*>(statistics) + row : nullptr; }
  /// Whether rows of `columns` elements can be copied 16 bytes at a time.
  bool aligned(const View<2>& x) const {
    const int64_t unit = 16 / element_size(x.dtype);
    return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.stride[0] % unit == 0 && x.size[1] % unit == 0;
  }
  bool in_pairs(const View<2>& x) const {
    return !x.data || (reinterpret_cast<uintptr_t>(x.data) % 4 == 0 && x.stride[0] % 2 == 0);
  }
  /// An array of scratch, packed.
  View<2> view(void* data, int64_t rows, int64_t columns) const { return {data, dtype_, {rows, columns}, {columns, 1}}; }

  Dropout dropout(int64_t row) const {
    if (!(in_.dropout > 0)) return {};
    return {in_.seeds, dropout_threshold(in_.dropout), row, C_};
  }
  float keep_scale() const { return in_.dropout > 0 ? float(1 / (1 - in_.dropout)) : 1.f; }

  void pack_adapter(DType dtype, const View<2>& from, bool transposed, void* to, int64_t rows, int64_t ldt) const {
    pack(dtype, {from.data, from.dtype, from.size[0], from.size[1], from.stride[0], transposed, to, rows, ldt}, stream_);
  }
  /// A of all projections, one below the other, ranks padded.
  void pack_lora_a(DType dtype) {
    lora_a_ = bytes(width_ * lda_ * element_size(dtype)), lora_a_dtype_ = dtype;
    for (int i = 0; i < count_; ++i)
      if (groups_[i].ranks)
        pack_adapter(dtype, projections_[i].lora_a, false, packed_lora_a(i), padded(groups_[i].ranks), lda_);
  }
  void* packed_lora_a(int i) const {
    return static_cast<char*>(lora_a_) + groups_[i].padded * lda_ * element_size(lora_a_dtype_);
  }
  /// Of the factors of low-rank products.
  DType factor_dtype() const { return wide_ ? kFloat : dtype_; }

  /// z of rows [row, row + rows): x, or its norm in scratch, with statistics where they belong.
  View<2> panel(int64_t row, int64_t rows, void* rstd, void* mean) {
    const View<2> x = rows_of(in_.x, row, rows);
    if (!in_.normed) return x;
    if (!z_) z_ = rows_scratch(panel_rows_, C_);
    NormTensors io{};
    io.x = x, io.weight = in_.norm_weight, io.bias = in_.norm_bias, io.weight_dtype = in_.norm_dtype;
    io.y = view(z_, rows, C_), io.rstd = rstd, io.mean = mean;
    norm_fwd_cuda(in_.norm, io, context_);
    return io.y;
  }

  LowRankArguments low_rank_of(const View<2>& x) const {
    LowRankArguments args{};
    args.x = x.data, args.ldx = x.stride[0], args.rows = x.size[0], args.K = x.size[1];
    args.chunk_rows = lora_chunk_rows(T_), args.aligned = aligned(x), args.wide = wide_;
    return args;
  }
  ProductArguments product_into(const View<2>& out) const {
    ProductArguments args{};
    args.m = out.size[0], args.n = out.size[1], args.out = out.data, args.ldo = out.stride[0];
    args.first = args.last = true, args.pairs = in_pairs(out);
    return args;
  }
  void add_part(ProductArguments& args, const View<2>& a, const View<2>& b, int64_t k, int masked = -1) const {
    if (k == 0) return;
    args.parts[args.count++] = {
        a.data, b.data, a.stride[0], b.stride[0], k, masked < 0 ? 0 : masked, aligned(a) && aligned(b), masked >= 0};
  }
  void multiply(ProductLayout layout, const ProductArguments& args) const {
    if (dtype_ == kFloat) return product_f32(layout, args, stream_);
    product_16(dtype_, layout, args, stream_);
  }

  template <class F>
  void each_panel(F&& body) const {
    for (int64_t row = 0; row < T_; row += panel_rows_) body(row, panel_rows_ < T_ - row ? panel_rows_ : T_ - row);
  }

  const LoraInput& in_;
  const LoraProjection* projections_;
  int count_;
  const CudaContext& context_;
  DType dtype_;
  const cudaStream_t stream_ = static_cast<cudaStream_t>(context_.stream);
  const int64_t T_ = in_.x.size[0], C_ = in_.x.size[1];
  const int64_t panel_rows_ = lora_panel_rows(T_) < T_ ? lora_panel_rows(T_) : T_;
  const int64_t lda_ = round_up(C_, 8);  // of the packed A
  RankGroup groups_[kLoraGroup] = {};
  int64_t width_ = 0, ranks_ = 0;  // of all projections, padded and not
  void *lora_a_ = nullptr, *z_ = nullptr;
  DType lora_a_dtype_ = dtype_;
  bool wide_ = false;  // some adapter is in float32 beside 16-bit rows
};

class Forward : Call {
 public:
  Forward(const LoraInput& in, const LoraProjection* projections, const LoraOutput* outputs, void* s, int64_t count,
          const CudaContext& context)
      : Call(in, projections, count, context), outputs_(outputs), s_(static_cast<float*>(s)) {}

  void run() {
    if (T_ == 0) return;
    if (width_) {
      pack_lora_a(factor_dtype());
      for (int i = 0; i < count_; ++i) pack_lora_b(i);
      parts_ = scratch<float>(ceil_div(C_, kPanelColumns) * panel_rows_ * width_);
      tail_ = rows_scratch(panel_rows_, width_);
    }
    each_panel([&](int64_t row, int64_t rows) {
      const View<2> z = panel(row, rows, from(in_.rstd, row), from(in_.mean, row));
      if (width_) low_rank_sums(z, row);
      for (int i = 0; i < count_; ++i) project(i, z, row);
    });
  }

 private:
  void pack_lora_b(int i) {
    if (!groups_[i].ranks) return;
    const int64_t N = projections_[i].weight.size[0], ranks = padded(groups_[i].ranks);
    lora_b_[i] = rows_scratch(N, ranks);
    pack_adapter(dtype_, projections_[i].lora_b, false, lora_b_[i], N, ranks);
  }

  /// s, and s times scaling in S as the tail of the products.
  void low_rank_sums(const View<2>& z, int64_t row) {
    LowRankArguments args = low_rank_of(z);
    args.factor = lora_a_, args.ldf = lda_, args.row_parts = parts_, args.width = width_, args.dropout = dropout(row);
    RowSumArguments sums{parts_, ceil_div(C_, kPanelColumns), z.size[0], width_, {}, {}, {}, 0, nullptr, ranks_, tail_};
    sums.sums = s_ ? s_ + row * ranks_ : nullptr;
    for (int i = 0; i < count_; ++i) {
      if (!groups_[i].ranks) continue;
      args.groups[args.count++] = groups_[i];
      sums.factors[sums.count] = keep_scale(), sums.tail_factors[sums.count] = float(projections_[i].scaling);
      sums.groups[sums.count++] = groups_[i];
    }
    low_rank(dtype_, args, stream_);
    sum_row_parts(dtype_, sums, stream_);
  }

  void project(int i, const View<2>& z, int64_t row) {
    const int64_t rows = z.size[0], ranks = padded(groups_[i].ranks), N = projections_[i].weight.size[0];
    const View<2> residual = rows_of(outputs_[i].residual, row, rows);
    ProductArguments args = product_into(rows_of(outputs_[i].y, row, rows));
    args.bias = projections_[i].bias, args.residual = residual.data, args.ldr = residual.stride[0];
    args.pairs = args.pairs && in_pairs(residual);
    add_part(args, z, projections_[i].weight, C_);
    if (ranks && !simt::mutant(145)) {
      View<2> tail = view(tail_, rows, width_);
      tail.data = static_cast<char*>(tail_) + groups_[i].padded * element_size(dtype_);
      add_part(args, tail, view(lora_b_[i], N, ranks), ranks);
    }
    multiply(ProductLayout::kRowsRows, args);
  }

  const LoraOutput* outputs_;
  float *s_, *parts_ = nullptr;
  void *tail_ = nullptr, *lora_b_[kLoraGroup] = {};
};

class Backward : Call {
 public:
  Backward(const LoraInput& in, const LoraProjection* projections, const LoraGradient* gradients,
           const LoraInputGradient& input_gradient, const void* s, int64_t count, const CudaContext& context)
      : Call(in, projections, count, context),
        gradients_(gradients),
        input_(input_gradient),
        s_(static_cast<const float*>(s)) {}

  void run() {
    const bool weight_wanted = input_.dnorm_weight || input_.dnorm_bias;
    dz_wanted_ = input_.dx.data || (in_.normed && weight_wanted);
    for (int i = 0; i < count_; ++i) {
      z_wanted_ = z_wanted_ || gradients_[i].dlora_a.data || gradients_[i].dweight.data;
      low_rank_gradients(i);
      bias_gradient(i);
    }
    if (dz_wanted_ && width_) pack_lora_a(dtype_);
    if (in_.normed && T_ > panel_rows_) weight_sums();
    if (in_.normed && T_ > 0) prepare_norm();
    da_parts_ = scratch<float>(da_wanted() ? chunks_ * width_ * C_ : 0);
    each_panel([&](int64_t row, int64_t rows) {
      if (z_wanted_) {
        const View<2> z = panel(row, rows, z_statistics_, z_statistics_ ? z_statistics_ + panel_rows_ : nullptr);
        lora_a_parts(z, row);
        if (in_.normed)
          for (int i = 0; i < count_; ++i) weight_gradient(i, z, row);
      }
      if (dz_wanted_) input_gradient(row, rows);
    });
    for (int i = 0; i < count_; ++i) {
      if (!in_.normed || T_ == 0) weight_gradient(i, in_.x, 0);
      store_lora_a(i);
    }
    store_norm_gradients();
  }

 private:
  bool has_gradient(int i) const { return gradients_[i].dy.data && groups_[i].ranks; }
  bool da_wanted() const {
    for (int i = 0; i < count_; ++i)
      if (has_gradient(i) && gradients_[i].dlora_a.data) return true;
    return false;
  }

  /// ds and its tail of dx, and dB, from one read of dy.
  void low_rank_gradients(int i) {
    const LoraGradient& g = gradients_[i];
    const int64_t N = projections_[i].weight.size[0], ranks = groups_[i].ranks, width = padded(ranks);
    const bool ds_wanted = dz_wanted_ || g.dlora_a.data;
    if (!ranks) return;
    float* db_parts = nullptr;
    if (g.dy.data && T_ && (ds_wanted || g.dlora_b.data)) {
      const int64_t ldf = round_up(N, 8), panels = ceil_div(N, kPanelColumns);
      void* factor = ds_wanted ? bytes(width * ldf * element_size(factor_dtype())) : nullptr;
      float* parts = ds_wanted ? scratch<float>(panels * panel_rows_ * width) : nullptr;
      if (ds_wanted) {
        pack_adapter(factor_dtype(), projections_[i].lora_b, true, factor, width, ldf);
        if (!ds_) ds_ = scratch<float>(T_ * ranks_);
        tails_[i] = rows_scratch(T_, width);
      }
      db_parts = g.dlora_b.data ? scratch<float>(chunks_ * width * N) : nullptr;
      each_panel([&](int64_t row, int64_t rows) {
        LowRankArguments args = low_rank_of(rows_of(g.dy, row, rows));
        args.factor = factor, args.ldf = ldf, args.row_parts = parts, args.width = width;
        args.weights = s_ ? s_ + row * ranks_ : nullptr, args.ldw = ranks_;
        args.column_parts = db_parts ? db_parts + row / lora_chunk_rows(T_) * width * N : nullptr;
        args.groups[args.count++] = {int(ranks), groups_[i].column, 0, i};
        low_rank(dtype_, args, stream_);
        if (!ds_wanted) return;
        RowSumArguments sums{parts, panels, rows, width, {}, {}, {}, 1, ds_ + row * ranks_, ranks_, nullptr};
        sums.groups[0] = args.groups[0], sums.factors[0] = float(projections_[i].scaling);
        sums.tail_factors[0] = keep_scale();
        sums.tail = static_cast<char*>(tails_[i]) + row * width * element_size(dtype_);
        sum_row_parts(dtype_, sums, stream_);
      });
    }
    if (g.dlora_b.data)
      sum_column_parts(
          projections_[i].lora_b.dtype,
          {db_parts, db_parts ? chunks_ : 0, width, 0, ranks, N, float(projections_[i].scaling), g.dlora_b.data, 1, ranks},
          stream_);
  }

  void bias_gradient(int i) {
    const LoraGradient& g = gradients_[i];
    const int64_t N = projections_[i].weight.size[0], chunks = g.dy.data ? chunks_ : 0;
    if (!g.dbias) return;
    auto* parts = scratch<float>(chunks * N);
    if (chunks) column_parts(dtype_, g.dy, lora_chunk_rows(T_), parts, stream_);
    sum_column_parts(dtype_, {parts, chunks, 1, 0, 1, N, 1.f, g.dbias, N, 1}, stream_);
  }

  void lora_a_parts(const View<2>& z, int64_t row) {
    if (!da_parts_) return;
    LowRankArguments args = low_rank_of(z);
    args.weights = ds_ + row * ranks_, args.ldw = ranks_, args.width = width_;
    args.column_parts = da_parts_ + row / lora_chunk_rows(T_) * width_ * C_;
    args.dropout = dropout(simt::mutant(146) ? 0 : row);
    for (int i = 0; i < count_; ++i)
      if (has_gradient(i) && gradients_[i].dlora_a.data) args.groups[args.count++] = groups_[i];
    low_rank(dtype_, args, stream_);
  }
  void store_lora_a(int i) {
    if (!gradients_[i].dlora_a.data || !groups_[i].ranks) return;
    const int64_t chunks = has_gradient(i) ? chunks_ : 0;
    sum_column_parts(projections_[i].lora_a.dtype,
                     {da_parts_, chunks, width_, groups_[i].padded, groups_[i].ranks, C_, keep_scale(),
                      gradients_[i].dlora_a.data, C_, 1},
                     stream_);
  }

  void weight_sums() {
    for (int i = 0; i < count_; ++i)
      if (gradients_[i].dweight.data) dweight_[i] = scratch<float>(projections_[i].weight.size[0] * C_);
  }
  /// dW = dy^T z, over the rows of z; of several panels in float.
  void weight_gradient(int i, const View<2>& z, int64_t row) {
    const LoraGradient& g = gradients_[i];
    if (!g.dweight.data) return;
    ProductArguments args = product_into(g.dweight);
    args.sums = dweight_[i], args.first = row == 0 || simt::mutant(147), args.last = row + z.size[0] == T_;
    if (g.dy.data) add_part(args, rows_of(g.dy, row, z.size[0]), z, z.size[0]);
    multiply(ProductLayout::kColumnsColumns, args);
  }

  /// What norm_bwd_cuda needs: statistics of z made again, weights in float so that gradients of panels are floats.
  void prepare_norm() {
    const int64_t panels = ceil_div(T_, panel_rows_);
    if (z_wanted_) z_statistics_ = scratch<float>(2 * panel_rows_);
    if (!dz_wanted_) return;
    dz_ = rows_scratch(panel_rows_, C_);
    if (!input_.dx.data) unused_dx_ = rows_scratch(panel_rows_, C_);
    norm_weight_ = in_.norm_weight;
    if (in_.norm_weight && in_.norm_dtype != kFloat) {
      norm_weight_ = scratch<float>(C_);
      pack(kFloat, {in_.norm_weight, in_.norm_dtype, 1, C_, C_, false, const_cast<void*>(norm_weight_), 1, C_}, stream_);
    }
    if (input_.dnorm_weight) dnorm_weight_ = scratch<float>(panels * C_);
    if (input_.dnorm_bias) dnorm_bias_ = scratch<float>(panels * C_);
  }

  /// dx of a panel of rows: dy W and ds A of every projection in one accumulator.
  void input_gradient(int64_t row, int64_t rows) {
    const View<2> dx = input_.dx.data ? rows_of(input_.dx, row, rows) : view(unused_dx_, rows, C_);
    ProductArguments args = product_into(in_.normed ? view(dz_, rows, C_) : dx);
    args.dropout = dropout(row);
    for (int i = 0; i < count_; ++i) {
      if (!gradients_[i].dy.data) continue;
      add_part(args, rows_of(gradients_[i].dy, row, rows), projections_[i].weight, projections_[i].weight.size[0]);
      if (!groups_[i].ranks) continue;
      const int64_t width = padded(groups_[i].ranks);
      View<2> lora_a = view(packed_lora_a(i), width, lda_);
      add_part(args, rows_of(view(tails_[i], T_, width), row, rows), lora_a, width,
               args.dropout.seeds && !simt::mutant(148) ? i : -1);
    }
    multiply(ProductLayout::kRowsColumns, args);
    if (!in_.normed) return;
    const int64_t panel = row / panel_rows_;
    NormGradients io{};
    io.dy = view(dz_, rows, C_), io.x = rows_of(in_.x, row, rows), io.dx = dx;
    io.weight = norm_weight_, io.weight_dtype = kFloat, io.rstd = from(in_.rstd, row), io.mean = from(in_.mean, row);
    io.dweight = dnorm_weight_ ? dnorm_weight_ + panel * C_ : nullptr;
    io.dbias = dnorm_bias_ ? dnorm_bias_ + panel * C_ : nullptr;
    norm_bwd_cuda(in_.norm, io, context_);
  }

  /// Panels in order.
  void store_norm_gradients() {
    if (!in_.normed) return;
    const int64_t panels = simt::mutant(149) || T_ == 0 ? T_ > 0 : ceil_div(T_, panel_rows_);
    const auto sum = [&](float* parts, void* to) {
      if (to) sum_column_parts(in_.norm_dtype, {parts, panels, 1, 0, 1, C_, 1.f, to, C_, 1}, stream_);
    };
    sum(dnorm_weight_, input_.dnorm_weight), sum(dnorm_bias_, input_.dnorm_bias);
  }

  const LoraGradient* gradients_;
  const LoraInputGradient& input_;
  const float* s_;
  const int64_t chunks_ = ceil_div(T_, lora_chunk_rows(T_));
  bool dz_wanted_ = false, z_wanted_ = false;
  float *ds_ = nullptr, *da_parts_ = nullptr, *z_statistics_ = nullptr, *dnorm_weight_ = nullptr, *dnorm_bias_ = nullptr;
  float* dweight_[kLoraGroup] = {};
  void *tails_[kLoraGroup] = {}, *dz_ = nullptr, *unused_dx_ = nullptr;
  const void* norm_weight_ = nullptr;
};

}  // namespace

void lora_linear_fwd_cuda(const LoraInput& in, const LoraProjection* projections, const LoraOutput* outputs, void* s,
                          int64_t count, const CudaContext& context) {
  Forward(in, projections, outputs, s, count, context).run();
}

void lora_linear_bwd_cuda(const LoraInput& in, const LoraProjection* projections, const LoraGradient* gradients,
                          const LoraInputGradient& input_gradient, const void* s, int64_t count,
                          const CudaContext& context) {
  Backward(in, projections, gradients, input_gradient, s, count, context).run();
}

}  // namespace longspan::kernels
