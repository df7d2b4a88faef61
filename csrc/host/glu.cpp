// longspan.kernels.glu_fwd and glu_bwd: gated and plain activations on plain arrays.
#include "kernels/glu/glu.h"

#include "host/arguments.h"
#include "host/bind.h"
#include "host/device.h"

namespace longspan::host {
namespace {

using kernels::DType;

py::object glu_fwd(const py::handle& gate_, const py::object& up_, const std::string& activation, int threads,
                   const py::object& y_, int64_t stream) {
  const Array gate = rows_of(gate_, "gate", stream);
  const Arguments others(gate, "gate", stream);
  const DType dtype = dtype_of(gate, "gate");
  const Array up = others.optional_input(up_, "up", gate.shape, dtype);
  const kernels::Activation kind = kernels::activation_named(activation);
  const Output y = others.output(y_, "y", gate.shape, dtype);
  const kernels::GluTensors io{kind, view_of<2>(gate, "gate"), view_or_null(up, "up"), view_of<2>(y.array, "y")};
  run_on(
      gate, threads, stream, [&](const auto& context) { kernels::glu_fwd_cpu(io, context); },
      [&](const auto& context) { LONGSPAN_CUDA_ENTRY(kernels::glu_fwd_cuda(io, context)); });
  return y.object;
}

py::tuple glu_bwd(const py::handle& dy_, const py::handle& gate_, const py::object& up_, const std::string& activation,
                  int threads, const py::object& dgate_, const py::object& dup_, int64_t stream) {
  const Array gate = rows_of(gate_, "gate", stream);
  const Arguments others(gate, "gate", stream);
  const DType dtype = dtype_of(gate, "gate");
  const Array dy = others.input(dy_, "dy", gate.shape, dtype), up = others.optional_input(up_, "up", gate.shape, dtype);
  const kernels::Activation kind = kernels::activation_named(activation);
  const Output dgate = others.output(dgate_, "dgate", gate.shape, dtype);
  const Output dup = up.data ? others.output(dup_, "dup", gate.shape, dtype) : Output{py::none(), {}};
  const kernels::GluGradients io{kind,
                                 view_of<2>(dy, "dy"),
                                 view_of<2>(gate, "gate"),
                                 view_or_null(up, "up"),
                                 view_of<2>(dgate.array, "dgate"),
                                 view_or_null(dup.array, "dup")};
  run_on(
      gate, threads, stream, [&](const auto& context) { kernels::glu_bwd_cpu(io, context); },
      [&](const auto& context) { LONGSPAN_CUDA_ENTRY(kernels::glu_bwd_cuda(io, context)); });
  return py::make_tuple(dgate.object, dup.object);
}

}  // namespace

void bind_glu(py::module_& m) {
  m.def("glu_fwd", &glu_fwd, py::arg("gate"), py::arg("up") = py::none(), py::arg("activation") = "silu", py::kw_only(),
        py::arg("threads") = 0, py::arg("y") = py::none(), py::arg("stream") = 1,
        R"(y = activation(gate) * up, or activation(gate) without up; all [T,F] of one dtype.

activation: silu, gelu, gelu_tanh, relu, relu2. y may be gate or up. Memory, streams and y as in attention_fwd.)");
  m.def(
      "glu_bwd", &glu_bwd, py::arg("dy"), py::arg("gate"), py::arg("up") = py::none(), py::arg("activation") = "silu",
      py::kw_only(), py::arg("threads") = 0, py::arg("dgate") = py::none(), py::arg("dup") = py::none(),
      py::arg("stream") = 1,
      "Backward of glu_fwd; returns (dgate, dup), None without up. dgate and dup may be dy, gate or up: it works in place.");
}

}  // namespace longspan::host
