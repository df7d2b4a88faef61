// Gated and plain activations; see glu.h.
#include "glu/activation.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {
namespace {

constexpr int64_t kElements = 1 << 14;  // of a task

/// A vector of `count` elements, zeros behind them.
template <class T, class S>
inline Vec<T> load_part(const S* x, int64_t count) {
  Vec<T> out{};
  for (int64_t i = 0; i < count; ++i) out[i] = load_as<T>(x + i);
  return out;
}
template <class T, class S>
inline Vec<T> load_vector(const S* x) {
  if constexpr (sizeof(S) == sizeof(T)) {
    return load<T>(x);
  } else {
    T wide[kLanes<T>];
    for (int i = 0; i < kLanes<T>; ++i) wide[i] = load_as<T>(x + i);
    return load<T>(wide);
  }
}
template <class T, class S>
inline void store_part(S* to, Vec<T> x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) store_as<T>(to + i, T(x[i]));
}
template <class T, class S>
inline void store_vector(S* to, Vec<T> x) {
  if constexpr (sizeof(S) == sizeof(T)) {
    store<T>(to, x);
  } else {
    T wide[kLanes<T>];
    store<T>(wide, x);
    for (int i = 0; i < kLanes<T>; ++i) store_as<T>(to + i, wide[i]);
  }
}

/// Calls body(row) for all rows, some of them a task.
template <class F>
void each_row(int64_t rows, int64_t columns, const Context& context, F&& body) {
  const int64_t rows_a_task = columns > 0 ? ceil_div(kElements, columns) : rows + 1;
  parallel_for(context, ceil_div(rows, rows_a_task), [&](int64_t task, int) {
    for (int64_t t = task * rows_a_task; t < rows && t < (task + 1) * rows_a_task; ++t) body(t);
  });
}

template <class S>
S* row_of(const View<2>& x, int64_t t) {
  return x.data ? static_cast<S*>(x.data) + t * x.stride[0] : nullptr;
}

template <class S, Activation Kind>
void forward(const GluTensors& io, const Context& context) {
  using T = Compute<S>;
  constexpr int64_t kStep = kLanes<T>;
  const int64_t F = io.gate.size[1];
  each_row(io.gate.size[0], F, context, [&](int64_t t) {
    const S *gate = row_of<S>(io.gate, t), *up = row_of<S>(io.up, t);
    S* y = row_of<S>(io.y, t);
    int64_t f = 0;
    for (; f + kStep <= F; f += kStep) {
      const Vec<T> a = activate<T, Kind>(load_vector<T>(gate + f)).value;
      store_vector<T>(y + f, up ? a * load_vector<T>(up + f) : a);
    }
    if (f == F) return;
    const Vec<T> a = activate<T, Kind>(load_part<T>(gate + f, F - f)).value;
    store_part<T>(y + f, up ? a * load_part<T>(up + f, F - f) : a, F - f);
  });
}

template <class S, Activation Kind>
void backward(const GluGradients& io, const Context& context) {
  using T = Compute<S>;
  constexpr int64_t kStep = kLanes<T>;
  const int64_t F = io.gate.size[1];
  each_row(io.gate.size[0], F, context, [&](int64_t t) {
    const S *dy = row_of<S>(io.dy, t), *gate = row_of<S>(io.gate, t), *up = row_of<S>(io.up, t);
    S *dgate = row_of<S>(io.dgate, t), *dup = row_of<S>(io.dup, t);
    for (int64_t f = 0; f < F; f += kStep) {
      const int64_t count = F - f < kStep ? F - f : kStep;
      const bool whole = count == kStep;
      const Vec<T> d = whole ? load_vector<T>(dy + f) : load_part<T>(dy + f, count);
      const Activated<T> a = activate<T, Kind>(whole ? load_vector<T>(gate + f) : load_part<T>(gate + f, count));
      Vec<T> g = d * a.slope;
      if (up) g *= whole ? load_vector<T>(up + f) : load_part<T>(up + f, count);
      whole ? store_vector<T>(dgate + f, g) : store_part<T>(dgate + f, g, count);
      if (up) whole ? store_vector<T>(dup + f, d * a.value) : store_part<T>(dup + f, d * a.value, count);
    }
  });
}

/// Calls body.operator()<S, Kind>() for a dtype and an activation.
template <class S, class F>
void with_activation(Activation kind, F&& body) {
  switch (kind) {
    case Activation::kSilu: return body.template operator()<S, Activation::kSilu>();
    case Activation::kGelu: return body.template operator()<S, Activation::kGelu>();
    case Activation::kGeluTanh: return body.template operator()<S, Activation::kGeluTanh>();
    case Activation::kRelu: return body.template operator()<S, Activation::kRelu>();
    case Activation::kRelu2: return body.template operator()<S, Activation::kRelu2>();
  }
}
template <class F>
void dispatch(DType dtype, Activation kind, F&& body) {
  switch (dtype) {
    case DType::kFloat32: return with_activation<float>(kind, body);
    case DType::kFloat64: return with_activation<double>(kind, body);
    case DType::kBFloat16: return with_activation<bfloat16>(kind, body);
    case DType::kFloat16: return;  // the entry points refuse it
  }
}

}  // namespace

void glu_fwd(const GluTensors& io, const Context& context) {
  dispatch(io.gate.dtype, io.activation, [&]<class S, Activation Kind>() { forward<S, Kind>(io, context); });
}

void glu_bwd(const GluGradients& io, const Context& context) {
  dispatch(io.gate.dtype, io.activation, [&]<class S, Activation Kind>() { backward<S, Kind>(io, context); });
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
