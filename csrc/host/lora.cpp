// longspan.kernels.lora_linear_fwd and lora_linear_bwd: linear maps with low-rank adapters on plain arrays.
#include "kernels/lora/lora.h"

#include <pybind11/stl.h>

#include "host/arguments.h"
#include "host/bind.h"
#include "host/device.h"

namespace longspan::host {
namespace {

using kernels::DType;

/// The arrays that both directions are given, for one projection.
struct Call {
  Array x;
  Arguments others;
  DType dtype, statistics;
  kernels::LoraInput in{};
  kernels::LoraProjection projection{};
  Array weight, bias, lora_a, lora_b, norm_weight, norm_bias, seed;
  int64_t T, C, N, R = 0;

  Call(const py::handle& x_, const py::handle& weight_, const py::object& bias_, const py::object& a_, const py::object& b_,
       double scaling, const std::string& norm, const py::object& norm_weight_, const py::object& norm_bias_, double eps,
       double weight_offset, double dropout, const py::object& seed_, int64_t stream)
      : x(rows_of(x_, "x", stream)),
        others(x, "x", stream),
        dtype(dtype_of(x, "x")),
        statistics(kernels::statistics_dtype(dtype)),
        T(x.shape[0]),
        C(x.shape[1]) {
    if (norm != "none" && norm != "rms" && norm != "layer")
      throw py::value_error("norm is '" + norm + "'; allowed: none, rms, layer");
    if (!(eps >= 0)) throw py::value_error("eps is " + std::to_string(eps) + "; it must not be negative");
    if (!(dropout >= 0 && dropout < 1))
      throw py::value_error("dropout_p is " + std::to_string(dropout) + "; it must be at least 0 and below 1");
    weight = rows_of(weight_, "weight", stream), N = weight.shape[0];
    weight = others.input(weight_, "weight", {N, C}, dtype);
    bias = others.optional_input(bias_, "bias", {N}, dtype);
    if (bias.data) check_contiguous(bias, "bias");
    if (a_.is_none() != b_.is_none()) throw py::value_error("lora_a and lora_b go together; give both or none");
    if (!a_.is_none()) {
      const Array given = rows_of(a_, "lora_a", stream);
      const DType adapter = dtype_of(given, "lora_a") == statistics ? statistics : dtype;
      R = given.shape[0];
      lora_a = others.input(a_, "lora_a", {R, C}, adapter), lora_b = others.input(b_, "lora_b", {N, R}, adapter);
      projection.lora_a = view_of<2>(lora_a, "lora_a"), projection.lora_b = view_of<2>(lora_b, "lora_b");
    }
    projection.weight = view_of<2>(weight, "weight"), projection.bias = bias.data, projection.scaling = scaling;
    in.x = view_of<2>(x, "x"), in.normed = norm != "none", in.norm = {norm == "layer", eps, weight_offset};
    in.norm_dtype = dtype, in.dropout = dropout;
    if (in.normed) {
      const py::object& first = norm_weight_.is_none() ? norm_bias_ : norm_weight_;
      if (!first.is_none() && borrow(first, "norm_weight", stream).dtype == dtype_name(statistics))
        in.norm_dtype = statistics;
      norm_weight = others.optional_input(norm_weight_, "norm_weight", {C}, in.norm_dtype);
      norm_bias = others.optional_input(norm_bias_, "norm_bias", {C}, in.norm_dtype);
      if (norm_weight.data) check_contiguous(norm_weight, "norm_weight");
      if (norm_bias.data) check_contiguous(norm_bias, "norm_bias");
      in.norm_weight = norm_weight.data, in.norm_bias = norm_bias.data;
    }
    if (dropout > 0) {
      if (seed_.is_none()) throw py::value_error("dropout needs seed, an int64 array of one element");
      seed = borrow(seed_, "seed", "int64", 1, stream);
      if (seed.shape[0] != 1) throw py::value_error("seed has " + std::to_string(seed.shape[0]) + " elements; it needs 1");
      in.seeds = static_cast<const int64_t*>(seed.data);
    }
  }
};

py::tuple lora_linear_fwd(const py::handle& x_, const py::handle& weight_, const py::object& bias_, const py::object& a_,
                          const py::object& b_, double scaling, const std::string& norm, const py::object& norm_weight_,
                          const py::object& norm_bias_, double eps, double weight_offset, double dropout,
                          const py::object& seed_, const py::object& residual_, int threads, const py::object& y_,
                          const py::object& s_, const py::object& rstd_, const py::object& mean_, int64_t stream) {
  Call call(x_, weight_, bias_, a_, b_, scaling, norm, norm_weight_, norm_bias_, eps, weight_offset, dropout, seed_, stream);
  const Array residual = call.others.optional_input(residual_, "residual", {call.T, call.N}, call.dtype);
  const Output y = call.others.output(y_, "y", {call.T, call.N}, call.dtype);
  Output s{py::none(), {}}, rstd{py::none(), {}}, mean{py::none(), {}};
  if (call.R) s = call.others.output(s_, "s", {call.T, call.R}, call.statistics), check_contiguous(s.array, "s");
  if (call.in.normed)
    rstd = call.others.output(rstd_, "rstd", {call.T}, call.statistics), check_contiguous(rstd.array, "rstd");
  if (call.in.normed && call.in.norm.centered)
    mean = call.others.output(mean_, "mean", {call.T}, call.statistics), check_contiguous(mean.array, "mean");
  call.in.rstd = rstd.array.data, call.in.mean = mean.array.data;
  const kernels::LoraOutput out{view_of<2>(y.array, "y"), view_or_null(residual, "residual")};
  run_on(
      call.x, threads, stream,
      [&](const auto& context) { kernels::lora_linear_fwd_cpu(call.in, &call.projection, &out, s.array.data, 1, context); },
      [&](const auto& context) {
        LONGSPAN_CUDA_ENTRY(kernels::lora_linear_fwd_cuda(call.in, &call.projection, &out, s.array.data, 1, context));
      });
  return py::make_tuple(y.object, s.object, rstd.object, mean.object);
}

py::dict lora_linear_bwd(const py::handle& dy_, const py::handle& x_, const py::handle& weight_, const py::object& a_,
                         const py::object& b_, const py::object& s_, double scaling, const std::string& norm,
                         const py::object& norm_weight_, const py::object& norm_bias_, double eps, double weight_offset,
                         double dropout, const py::object& seed_, const py::object& rstd_, const py::object& mean_,
                         const std::vector<std::string>& wanted, int threads, const py::dict& out, int64_t stream) {
  Call call(x_, weight_, py::none(), a_, b_, scaling, norm, norm_weight_, norm_bias_, eps, weight_offset, dropout, seed_,
            stream);
  const Array dy = call.others.input(dy_, "dy", {call.T, call.N}, call.dtype);
  const Array s = call.R ? call.others.input(s_, "s", {call.T, call.R}, call.statistics) : Array{};
  Array rstd, mean;
  if (call.in.normed) rstd = call.others.input(rstd_, "rstd", {call.T}, call.statistics), check_contiguous(rstd, "rstd");
  if (call.in.normed && call.in.norm.centered)
    mean = call.others.input(mean_, "mean", {call.T}, call.statistics), check_contiguous(mean, "mean");
  if (s.data) check_contiguous(s, "s");
  call.in.rstd = rstd.data, call.in.mean = mean.data;

  kernels::LoraGradient g{};
  g.dy = view_of<2>(dy, "dy");
  kernels::LoraInputGradient input{};
  py::dict results;
  std::vector<Output> kept;
  const auto make = [&](const std::string& name, const std::vector<int64_t>& shape, DType dtype) {
    kept.push_back(
        call.others.output(out.contains(name.c_str()) ? py::object(out[name.c_str()]) : py::none(), name, shape, dtype));
    check_contiguous(kept.back().array, name);
    results[name.c_str()] = kept.back().object;
    return kept.back().array;
  };
  const DType adapter = call.projection.lora_a.data ? call.projection.lora_a.dtype : call.dtype;
  for (const std::string& name : wanted) {
    const bool known = name == "dx" || name == "dweight" || name == "dbias" ||
                       (call.R && (name == "dlora_a" || name == "dlora_b")) ||
                       (call.in.norm_weight && name == "dnorm_weight") || (call.in.norm_bias && name == "dnorm_bias");
    if (!known)
      throw py::value_error("wanted has '" + name +
                            "'; allowed: dx, dweight, dbias, and with an adapter or a norm's vectors dlora_a, dlora_b, "
                            "dnorm_weight, dnorm_bias");
    if (name == "dx") input.dx = view_of<2>(make(name, {call.T, call.C}, call.dtype), "dx");
    if (name == "dweight") g.dweight = view_of<2>(make(name, {call.N, call.C}, call.dtype), "dweight");
    if (name == "dbias") g.dbias = make(name, {call.N}, call.dtype).data;
    if (name == "dlora_a") g.dlora_a = view_of<2>(make(name, {call.R, call.C}, adapter), "dlora_a");
    if (name == "dlora_b") g.dlora_b = view_of<2>(make(name, {call.N, call.R}, adapter), "dlora_b");
    if (name == "dnorm_weight") input.dnorm_weight = make(name, {call.C}, call.in.norm_dtype).data;
    if (name == "dnorm_bias") input.dnorm_bias = make(name, {call.C}, call.in.norm_dtype).data;
  }
  run_on(
      call.x, threads, stream,
      [&](const auto& context) { kernels::lora_linear_bwd_cpu(call.in, &call.projection, &g, input, s.data, 1, context); },
      [&](const auto& context) {
        LONGSPAN_CUDA_ENTRY(kernels::lora_linear_bwd_cuda(call.in, &call.projection, &g, input, s.data, 1, context));
      });
  return results;
}

}  // namespace

void bind_lora(py::module_& m) {
  m.def("lora_linear_fwd", &lora_linear_fwd, py::arg("x"), py::arg("weight"), py::arg("bias") = py::none(),
        py::arg("lora_a") = py::none(), py::arg("lora_b") = py::none(), py::kw_only(), py::arg("scaling") = 1.0,
        py::arg("norm") = "none", py::arg("norm_weight") = py::none(), py::arg("norm_bias") = py::none(),
        py::arg("eps") = 1e-6, py::arg("weight_offset") = 0.0, py::arg("dropout_p") = 0.0, py::arg("seed") = py::none(),
        py::arg("residual") = py::none(), py::arg("threads") = 0, py::arg("y") = py::none(), py::arg("s") = py::none(),
        py::arg("rstd") = py::none(), py::arg("mean") = py::none(), py::arg("stream") = 1,
        R"(y = z W^T + b + scaling ((z . D) A^T) B^T + residual with z = x or norm(x); returns (y, s, rstd, mean).

x [T,C], weight [N,C], bias [N], lora_a [R,C], lora_b [N,R], residual [T,N]. norm is "none", "rms" or "layer", with norm_weight and
norm_bias [C], eps and weight_offset as in norm_fwd. D is the dropout mask of the seed (an int64 array of one element).
s = (z . D) A^T [T,R] and the norm's rstd [T] and mean [T] are float32, or float64 for float64; None where there is none. Adapters
may be float32 beside bfloat16. Memory, streams and arrays to write to as in attention_fwd.)");
  m.def("lora_linear_bwd", &lora_linear_bwd, py::arg("dy"), py::arg("x"), py::arg("weight"), py::arg("lora_a") = py::none(),
        py::arg("lora_b") = py::none(), py::arg("s") = py::none(), py::kw_only(), py::arg("scaling") = 1.0,
        py::arg("norm") = "none", py::arg("norm_weight") = py::none(), py::arg("norm_bias") = py::none(),
        py::arg("eps") = 1e-6, py::arg("weight_offset") = 0.0, py::arg("dropout_p") = 0.0, py::arg("seed") = py::none(),
        py::arg("rstd") = py::none(), py::arg("mean") = py::none(),
        py::arg("wanted") = std::vector<std::string>{"dx", "dlora_a", "dlora_b"}, py::arg("threads") = 0,
        py::arg("out") = py::dict(), py::arg("stream") = 1,
        R"(Gradients of lora_linear_fwd by name, for dy [T,N]: a dict of those in `wanted`.

wanted: any of dx, dweight, dbias, dlora_a, dlora_b, dnorm_weight, dnorm_bias. s, rstd and mean are the forward's. out: arrays to
write to, by name.)");
}

}  // namespace longspan::host
