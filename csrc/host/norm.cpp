// longspan.kernels.norm_fwd and norm_bwd: row norms on plain arrays.
#include "kernels/norm/norm.h"

#include "host/arguments.h"
#include "host/bind.h"
#include "host/device.h"

namespace longspan::host {
namespace {

using kernels::DType;

/// weight and bias: of one dtype, that of x or of statistics.
struct Vectors {
  Array weight, bias;
  DType dtype;

  Vectors(const py::object& weight_, const py::object& bias_, const Arguments& others, int64_t C, DType rows, Stream stream)
      : dtype(rows) {
    const py::object& given = weight_.is_none() ? bias_ : weight_;
    if (given.is_none()) return;
    if (borrow(given, "weight", stream).dtype == dtype_name(kernels::statistics_dtype(rows)))
      dtype = kernels::statistics_dtype(rows);
    weight = others.optional_input(weight_, "weight", {C}, dtype), bias = others.optional_input(bias_, "bias", {C}, dtype);
    if (weight.data) check_contiguous(weight, "weight");
    if (bias.data) check_contiguous(bias, "bias");
  }
};

py::tuple norm_fwd(const py::handle& x_, const py::object& weight_, const py::object& bias_, const py::object& residual_,
                   bool centered, double eps, double weight_offset, int threads, const py::object& y_,
                   const py::object& sum_, const py::object& rstd_, const py::object& mean_, int64_t stream) {
  const Array x = rows_of(x_, "x", stream);
  const Arguments others(x, "x", stream);
  const DType dtype = dtype_of(x, "x"), statistics = kernels::statistics_dtype(dtype);
  const int64_t T = x.shape[0], C = x.shape[1];
  if (!(eps >= 0)) throw py::value_error("eps is " + std::to_string(eps) + "; it must not be negative");
  const Vectors vectors(weight_, bias_, others, C, dtype, stream);
  const Array residual = others.optional_input(residual_, "residual", x.shape, dtype);
  const Output y = others.output(y_, "y", x.shape, dtype), rstd = others.output(rstd_, "rstd", {T}, statistics);
  check_contiguous(rstd.array, "rstd");
  Output sum{py::none(), {}}, mean{py::none(), {}};
  if (residual.data) sum = others.output(sum_, "sum", x.shape, dtype);
  if (centered) mean = others.output(mean_, "mean", {T}, statistics), check_contiguous(mean.array, "mean");
  const kernels::NormTensors io{
      view_of<2>(x, "x"), view_or_null(residual, "residual"), vectors.weight.data,      vectors.bias.data,
      vectors.dtype,      view_or_null(sum.array, "sum"),     view_of<2>(y.array, "y"), rstd.array.data,
      mean.array.data};
  const kernels::NormSpec spec{centered, eps, weight_offset};
  run_on(
      x, threads, stream, [&](const auto& context) { kernels::norm_fwd_cpu(spec, io, context); },
      [&](const auto& context) { LONGSPAN_CUDA_ENTRY(kernels::norm_fwd_cuda(spec, io, context)); });
  return py::make_tuple(y.object, sum.object, rstd.object, mean.object);
}

py::tuple norm_bwd(const py::handle& dy_, const py::handle& x_, const py::object& rstd_, const py::object& mean_,
                   const py::object& weight_, const py::object& dsum_, bool centered, double weight_offset,
                   bool need_dweight, bool need_dbias, int threads, const py::object& dx_, const py::object& dweight_,
                   const py::object& dbias_, int64_t stream) {
  const Array x = rows_of(x_, "x", stream);
  const Arguments others(x, "x", stream);
  const DType dtype = dtype_of(x, "x"), statistics = kernels::statistics_dtype(dtype);
  const int64_t T = x.shape[0], C = x.shape[1];
  const Vectors vectors(weight_, py::none(), others, C, dtype, stream);
  const Array dy = others.input(dy_, "dy", x.shape, dtype), dsum = others.optional_input(dsum_, "dsum", x.shape, dtype);
  const Array rstd = others.input(rstd_, "rstd", {T}, statistics);
  const Array mean = centered ? others.input(mean_, "mean", {T}, statistics) : Array{};
  check_contiguous(rstd, "rstd");
  if (centered) check_contiguous(mean, "mean");
  const Output dx = others.output(dx_, "dx", x.shape, dtype);
  Output dweight{py::none(), {}}, dbias{py::none(), {}};
  if (need_dweight) dweight = others.output(dweight_, "dweight", {C}, vectors.dtype);
  if (need_dbias) dbias = others.output(dbias_, "dbias", {C}, vectors.dtype);
  const kernels::NormGradients io{view_of<2>(dy, "dy"),
                                  view_or_null(dsum, "dsum"),
                                  view_of<2>(x, "x"),
                                  vectors.weight.data,
                                  vectors.dtype,
                                  rstd.data,
                                  mean.data,
                                  view_of<2>(dx.array, "dx"),
                                  dweight.array.data,
                                  dbias.array.data};
  const kernels::NormSpec spec{centered, 0.0, weight_offset};
  run_on(
      x, threads, stream, [&](const auto& context) { kernels::norm_bwd_cpu(spec, io, context); },
      [&](const auto& context) { LONGSPAN_CUDA_ENTRY(kernels::norm_bwd_cuda(spec, io, context)); });
  return py::make_tuple(dx.object, dweight.object, dbias.object);
}

}  // namespace

void bind_norm(py::module_& m) {
  m.def("norm_fwd", &norm_fwd, py::arg("x"), py::arg("weight") = py::none(), py::arg("bias") = py::none(), py::kw_only(),
        py::arg("residual") = py::none(), py::arg("centered") = false, py::arg("eps") = 1e-6, py::arg("weight_offset") = 0.0,
        py::arg("threads") = 0, py::arg("y") = py::none(), py::arg("sum") = py::none(), py::arg("rstd") = py::none(),
        py::arg("mean") = py::none(), py::arg("stream") = 1,
        R"(RMS norm, or with centered=True layer norm, of rows x [T,C] (+ residual [T,C]); returns (y, sum, rstd, mean).

y = (s - mean) rstd (weight_offset + weight) + bias with s = x + residual. weight, bias [C]: the dtype of x, or float32; sum [T,C]
is s, None without a residual; rstd [T] and mean [T] (None unless centered) are float32, or float64 for float64. Memory, streams
and arrays to write to as in attention_fwd.)");
  m.def(
      "norm_bwd", &norm_bwd, py::arg("dy"), py::arg("x"), py::arg("rstd"), py::arg("mean") = py::none(),
      py::arg("weight") = py::none(), py::kw_only(), py::arg("dsum") = py::none(), py::arg("centered") = false,
      py::arg("weight_offset") = 0.0, py::arg("need_dweight") = false, py::arg("need_dbias") = false, py::arg("threads") = 0,
      py::arg("dx") = py::none(), py::arg("dweight") = py::none(), py::arg("dbias") = py::none(), py::arg("stream") = 1,
      R"(Backward of norm_fwd; x is what was normalised (its `sum` where there was a residual). Returns (dx, dweight, dbias).

dsum [T,C], the gradient of `sum`, is added to dx, which is then the gradient of both x and the residual. dweight and dbias [C] have
the dtype of weight, None where not asked for.)");
}

}  // namespace longspan::host
