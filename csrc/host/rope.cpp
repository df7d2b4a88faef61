// longspan.kernels.rope and rope_: rotary position embedding on plain arrays.
#include "kernels/rope/rope.h"

#include "host/arguments.h"
#include "host/bind.h"
#include "host/device.h"

namespace longspan::host {
namespace {

using kernels::DType;

void rotate(const Array& x, const Array& y, const py::handle& cos_, const py::handle& sin_, const py::handle& positions_,
            bool interleaved, bool inverse, int threads, int64_t stream) {
  const Arguments others(x, "x", stream);
  const DType statistics = kernels::statistics_dtype(dtype_of(x, "x"));
  const int64_t B = x.shape[0], T = x.shape[2], D = x.shape[3];
  const Array cos = borrow(cos_, "cos", dtype_name(statistics), 2, stream);
  check_device(cos, "cos", x, "x");
  const Array sin = others.input(sin_, "sin", cos.shape, statistics);
  if (2 * cos.shape[1] > D)
    throw py::value_error("cos has " + std::to_string(cos.shape[1]) + " columns; a head of " + std::to_string(D) +
                          " has room for at most " + std::to_string(D / 2));
  const Array positions = borrow(positions_, "positions", "int64", 2, stream);
  check_device(positions, "positions", x, "x");
  if ((positions.shape[0] != 1 && positions.shape[0] != B) || positions.shape[1] != T || !positions.contiguous())
    throw py::value_error("positions has shape [" + std::to_string(positions.shape[0]) + ", " +
                          std::to_string(positions.shape[1]) + "]; it must be contiguous [1 or " + std::to_string(B) + ", " +
                          std::to_string(T) + "]");
  const kernels::RopeTensors io{view_of<4>(x, "x"),
                                view_of<4>(y, "y"),
                                view_of<2>(cos, "cos"),
                                view_of<2>(sin, "sin"),
                                static_cast<const int64_t*>(positions.data),
                                positions.shape[0] == 1 ? 0 : T};
  const kernels::RopeSpec spec{interleaved, inverse};
  run_on(
      x, threads, stream, [&](const auto& context) { kernels::rope_cpu(spec, io, context); },
      [&](const auto& context) { LONGSPAN_CUDA_ENTRY(kernels::rope_cuda(spec, io, context)); });
}

Array heads_of(const py::handle& x_, int64_t stream) {
  Array x = borrow(x_, "x", stream);
  view_of<4>(x, "x");
  return x;
}

py::object rope(const py::handle& x_, const py::handle& cos, const py::handle& sin, const py::handle& positions,
                bool interleaved, bool inverse, int threads, const py::object& y_, int64_t stream) {
  const Array x = heads_of(x_, stream);
  const Output y = Arguments(x, "x", stream).output(y_, "y", x.shape, dtype_of(x, "x"));
  rotate(x, y.array, cos, sin, positions, interleaved, inverse, threads, stream);
  return y.object;
}

py::object rope_(const py::object& x_, const py::handle& cos, const py::handle& sin, const py::handle& positions,
                 bool interleaved, bool inverse, int threads, int64_t stream) {
  const Array x = heads_of(x_, stream);
  check_writable(x, "x");
  rotate(x, x, cos, sin, positions, interleaved, inverse, threads, stream);
  return x_;
}

}  // namespace

void bind_rope(py::module_& m) {
  m.def("rope", &rope, py::arg("x"), py::arg("cos"), py::arg("sin"), py::arg("positions"), py::kw_only(),
        py::arg("interleaved") = false, py::arg("inverse") = false, py::arg("threads") = 0, py::arg("y") = py::none(),
        py::arg("stream") = 1,
        R"(Rotary position embedding of x [B,H,T,D]: the first 2 N columns of every head turn by the angles of their token.

cos, sin [P,N]: float32, or float64 for float64; positions [1 or B, T] int64, rows of the tables. Pairs are columns (i, i + N), or
(2 i, 2 i + 1) when interleaved. inverse=True is the gradient's direction. Memory, streams and y as in attention_fwd.)");
  m.def("rope_", &rope_, py::arg("x"), py::arg("cos"), py::arg("sin"), py::arg("positions"), py::kw_only(),
        py::arg("interleaved") = false, py::arg("inverse") = false, py::arg("threads") = 0, py::arg("stream") = 1,
        "As rope, in place; returns x.");
}

}  // namespace longspan::host
