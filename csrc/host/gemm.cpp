// longspan.kernels.gemm: the library's own matrix product on plain arrays.
#include "kernels/common/gemm.h"

#include "host/array.h"
#include "host/bind.h"
#include "host/pool.h"

namespace longspan::host {
namespace {

std::string shape_text(int64_t rows, int64_t columns) {
  return "[" + std::to_string(rows) + ", " + std::to_string(columns) + "]";
}

py::object gemm(const py::object& a_, const py::object& b_, const py::object& c_, bool transpose_a, bool transpose_b,
                double beta, const py::object& p_, const py::object& q_, int threads) {
  const Array a_array = borrow(a_, "a"), b_array = borrow(b_, "b");
  const auto a = view_of<2>(a_array, "a"), b = view_of<2>(b_array, "b");
  const int64_t m = a.size[transpose_a], k = a.size[!transpose_a], n = b.size[!transpose_b];
  if (b.size[transpose_b] != k)
    throw py::value_error("op(a) is " + shape_text(m, k) + " and op(b) is " + shape_text(b.size[transpose_b], n) +
                          "; the inner lengths must agree");
  const bool wide = a.dtype == kernels::DType::kFloat64;
  if (wide != (b.dtype == kernels::DType::kFloat64))
    throw py::value_error("a is " + a_array.dtype + " and b is " + b_array.dtype +
                          "; float64 does not mix with other dtypes");
  py::object result = c_;
  if (c_.is_none()) {
    if (beta != 0)
      throw py::value_error("beta is " + std::to_string(beta) + " but there is no c; give c or leave beta at 0");
    result = new_array(dtype_name(kernels::statistics_dtype(a.dtype)), {m, n});
  }
  const Array c_array = borrow(result, "c");
  check_writable(c_array, "c");
  const auto c = view_of<2>(c_array, "c");
  if (c.size[0] != m || c.size[1] != n)
    throw py::value_error("c is " + shape_text(c.size[0], c.size[1]) + "; op(a) op(b) is " + shape_text(m, n));
  if (wide != (c.dtype == kernels::DType::kFloat64))
    throw py::value_error("a is " + a_array.dtype + " and c is " + c_array.dtype +
                          "; float64 does not mix with other dtypes");
  kernels::GemmTail tail;
  Array p, q;
  if (p_.is_none() != q_.is_none()) throw py::value_error("p and q go together; give both or none");
  if (!p_.is_none()) {
    const std::string dtype = dtype_name(kernels::statistics_dtype(a.dtype));
    p = borrow(p_, "p", dtype, 2), q = borrow(q_, "q", dtype, 2);
    const auto p_view = view_of<2>(p, "p"), q_view = view_of<2>(q, "q");
    tail = {p_view.data, p_view.stride[0], q_view.data, q_view.stride[0], p_view.size[1]};
    if (p_view.size[0] != m || q_view.size[transpose_b] != tail.rank || q_view.size[!transpose_b] != n)
      throw py::value_error("p is " + shape_text(p_view.size[0], p_view.size[1]) + " and op(q) is " +
                            shape_text(q_view.size[transpose_b], q_view.size[!transpose_b]) + "; they must be [" +
                            std::to_string(m) + ", R] and [R, " + std::to_string(n) + "]");
  }
  HostContext host(threads);
  {
    py::gil_scoped_release release;
    kernels::gemm_cpu({transpose_a, transpose_b, m, n, k, a.data, a.stride[0], b.data, b.stride[0], beta, c.data,
                       c.stride[0], a.dtype, b.dtype, c.dtype},
                      host.context(), tail);
  }
  return result;
}

}  // namespace

void bind_gemm(py::module_& m) {
  m.def("gemm", &gemm, py::arg("a"), py::arg("b"), py::arg("c") = py::none(), py::kw_only(), py::arg("transpose_a") = false,
        py::arg("transpose_b") = false, py::arg("beta") = 0.0, py::arg("p") = py::none(), py::arg("q") = py::none(),
        py::arg("threads") = 0,
        R"(c = op(a) op(b) + p op(q) + beta c, with op(a) [M,K] and op(b) [K,N]; returns c.

p [M,R] and op(q) [R,N] are a second product of small rank (a low-rank adapter), in float32 (float64), q stored as b is; it costs
its arithmetic alone.

a, b and c are all float64, or each is float32 or bfloat16 (summed in float32). Rows of any stride, columns contiguous. c is
written in place; None is a new float32 (float64) NumPy array. threads 0 uses all cores; the result does not depend on it.)");
}

}  // namespace longspan::host
