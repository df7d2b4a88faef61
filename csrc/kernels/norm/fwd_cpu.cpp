// Forward of the row norms; see norm.h.
#include <cmath>

#include "norm/norm.h"
#include "norm/row.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {
namespace {

template <class T>
struct Statistics {
  T mean, rstd;
};

template <class T>
Statistics<T> statistics(const T* x, int64_t C, bool centered, T eps) {
  T mean = 0;
  if (centered) mean = sum_row<T>(C, [&](int64_t i) { return load<T>(x + i); }, [&](int64_t i) { return x[i]; }) / T(C);
  const T squares = sum_row<T>(
      C,
      [&](int64_t i) {
        const Vec<T> d = load<T>(x + i) - mean;
        return d * d;
      },
      [&](int64_t i) { return (x[i] - mean) * (x[i] - mean); });
  return {mean, T(1) / std::sqrt(squares / T(C) + eps)};
}

template <class S>
void run(const NormSpec& spec, const NormTensors& io, const Context& context) {
  using T = Compute<S>;
  constexpr bool kNarrow = sizeof(S) != sizeof(T);
  constexpr int64_t kRows = 16;  // a task
  const int64_t rows = io.x.size[0], C = io.x.size[1];
  const T* weight = vector_in<T, S>(io.weight, io.weight_dtype, C, T(spec.weight_offset), T(1), context);
  const T* bias = vector_in<T, S>(io.bias, io.weight_dtype, C, T(0), T(0), context);
  T* wide = kNarrow ? scratch<T>(context, 2 * C * context.parallel.workers) : nullptr;
  const auto row = [](const View<2>& view, int64_t t) { return static_cast<S*>(view.data) + t * view.stride[0]; };
  parallel_for(context, ceil_div(rows, kRows), [&](int64_t task, int worker) {
    for (int64_t t = task * kRows; t < rows && t < (task + 1) * kRows; ++t) {
      const S* input = row(io.x, t);
      if (io.residual.data) {
        const S* residual = row(io.residual, t);
        S* sum = row(io.sum, t);
        for (int64_t c = 0; c < C; ++c) store_as<T>(sum + c, load_as<T>(input + c) + load_as<T>(residual + c));
        input = sum;
      }
      const T* x;
      T* y;
      if constexpr (kNarrow) {
        T* own = wide + 2 * C * worker;
        widen<T>(input, own, C);
        x = own, y = own + C;
      } else {
        x = input, y = row(io.y, t);
      }
      const Statistics<T> s = statistics<T>(x, C, spec.centered, T(spec.eps));
      for (int64_t c = 0; c < C; ++c) y[c] = (x[c] - s.mean) * s.rstd * weight[c] + bias[c];
      if constexpr (kNarrow) round_row<T>(y, row(io.y, t), C);
      static_cast<T*>(io.rstd)[t] = s.rstd;
      if (spec.centered) static_cast<T*>(io.mean)[t] = s.mean;
    }
  });
}

}  // namespace

void norm_fwd(const NormSpec& spec, const NormTensors& io, const Context& context) {
  switch (io.x.dtype) {
    case DType::kFloat32: return run<float>(spec, io, context);
    case DType::kFloat64: return run<double>(spec, io, context);
    case DType::kBFloat16: return run<bfloat16>(spec, io, context);
    case DType::kFloat16: return;  // norm_fwd_cpu refuses it
  }
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
