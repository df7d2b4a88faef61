// Backward of the row norms; see norm.h.
#include "norm/norm.h"
#include "norm/row.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {
namespace {

/// Adds up the chunks' parts in order and rounds once.
template <class T, class S>
void store_sums(const double* parts, int64_t chunks, int64_t C, void* to, DType dtype) {
  const bool narrow = sizeof(S) != sizeof(T) && element_size(dtype) == int64_t(sizeof(S));
  for (int64_t c = 0; c < C; ++c) {
    double sum = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += parts[chunk * C + c];
    if (narrow)
      store_as<T>(static_cast<S*>(to) + c, T(sum));
    else
      static_cast<T*>(to)[c] = T(sum);
  }
}

template <class T>
inline T dot(const T* x, const T* y, int64_t count) {
  return sum_row<T>(
      count, [&](int64_t i) { return load<T>(x + i) * load<T>(y + i); }, [&](int64_t i) { return x[i] * y[i]; });
}

template <class S>
void run(const NormSpec& spec, const NormGradients& io, const Context& context) {
  using T = Compute<S>;
  const int64_t rows = io.x.size[0], C = io.x.size[1];
  const int64_t chunk_rows = norm_chunk_rows(rows), chunks = ceil_div(rows, chunk_rows);
  const T* weight = vector_in<T, S>(io.weight, io.weight_dtype, C, T(spec.weight_offset), T(1), context);
  double* dweight = io.dweight ? scratch<double>(context, chunks * C) : nullptr;
  double* dbias = io.dbias ? scratch<double>(context, chunks * C) : nullptr;
  T* own_rows = scratch<T>(context, 2 * C * context.parallel.workers);
  const auto row = [](const View<2>& view, int64_t t) { return static_cast<S*>(view.data) + t * view.stride[0]; };
  parallel_for(context, chunks, [&](int64_t chunk, int worker) {
    T *normed = own_rows + 2 * C * worker, *g = normed + C;
    double *weight_part = dweight ? dweight + chunk * C : nullptr, *bias_part = dbias ? dbias + chunk * C : nullptr;
    for (int64_t c = 0; c < C; ++c) {
      if (dweight) weight_part[c] = 0;
      if (dbias) bias_part[c] = 0;
    }
    for (int64_t t = chunk * chunk_rows; t < rows && t < (chunk + 1) * chunk_rows; ++t) {
      const S *x = row(io.x, t), *dy = row(io.dy, t);
      const T rstd = static_cast<const T*>(io.rstd)[t], mean = spec.centered ? static_cast<const T*>(io.mean)[t] : T(0);
      for (int64_t c = 0; c < C; ++c) {
        const T d = load_as<T>(dy + c);
        normed[c] = (load_as<T>(x + c) - mean) * rstd;
        g[c] = d * weight[c];
      }
      if (dweight)
        for (int64_t c = 0; c < C; ++c) weight_part[c] += double(load_as<T>(dy + c) * normed[c]);
      if (dbias)
        for (int64_t c = 0; c < C; ++c) bias_part[c] += double(load_as<T>(dy + c));
      const T along = dot(g, normed, C) / T(C);
      const T level = spec.centered ? sum_row<T>(
                                          C, [&](int64_t i) { return load<T>(g + i); }, [&](int64_t i) { return g[i]; }) /
                                          T(C)
                                    : T(0);
      S* dx = row(io.dx, t);
      if (io.dsum.data) {
        const S* dsum = row(io.dsum, t);
        for (int64_t c = 0; c < C; ++c)
          store_as<T>(dx + c, rstd * (g[c] - along * normed[c] - level) + load_as<T>(dsum + c));
      } else {
        for (int64_t c = 0; c < C; ++c) store_as<T>(dx + c, rstd * (g[c] - along * normed[c] - level));
      }
    }
  });
  if (dweight) store_sums<T, S>(dweight, chunks, C, io.dweight, io.weight_dtype);
  if (dbias) store_sums<T, S>(dbias, chunks, C, io.dbias, io.weight_dtype);
}

}  // namespace

void norm_bwd(const NormSpec& spec, const NormGradients& io, const Context& context) {
  switch (io.x.dtype) {
    case DType::kFloat32: return run<float>(spec, io, context);
    case DType::kFloat64: return run<double>(spec, io, context);
    case DType::kBFloat16: return run<bfloat16>(spec, io, context);
    case DType::kFloat16: return;  // norm_bwd_cpu refuses it
  }
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
