// longspan.kernels.linear_cross_entropy: the loss kernel on plain arrays.
#include "kernels/loss/loss.h"

#include "host/array.h"
#include "host/bind.h"
#include "host/device.h"
#include "host/pool.h"
#include "kernels/common/gemm.h"

namespace longspan::host {
namespace {

using kernels::DType;
using kernels::View;

/// A contiguous vector of `length` values of `dtype`; null data for None.
Array vector_of(const py::object& object, const std::string& name, const std::string& dtype, int64_t length) {
  if (object.is_none()) return {};
  Array out = borrow(object, name, dtype, 1);
  if (out.shape[0] != length || !out.contiguous())
    throw py::value_error(name + " has length " + std::to_string(out.shape[0]) + "; it must be contiguous with length " +
                          std::to_string(length));
  return out;
}

View<2> matrix_of(const py::array& array, DType dtype) {
  return {const_cast<void*>(array.data()), dtype, {array.shape(0), array.shape(1)}, {array.shape(1), 1}};
}

py::tuple linear_cross_entropy(const py::object& hidden_, const py::object& weight_, const py::object& labels_,
                               const py::object& bias_, const py::object& row_weights_, int64_t segment,
                               int64_t ignore_index, double logit_scale, double logit_softcap, bool need_dhidden,
                               bool need_dweight, bool need_dbias, int threads) {
  const Array hidden = borrow(hidden_, "hidden"), weight = borrow(weight_, "weight");
  const auto h = view_of<2>(hidden, "hidden"), w = view_of<2>(weight, "weight");
  const int64_t T = h.size[0], C = h.size[1], V = w.size[0];
  if (hidden.dtype != weight.dtype)
    throw py::value_error("hidden is " + hidden.dtype + " and weight is " + weight.dtype + "; they must have one dtype");
  if (w.size[1] != C)
    throw py::value_error("hidden has width " + std::to_string(C) + " and weight has width " + std::to_string(w.size[1]));
  if (segment < 1) throw py::value_error("segment is " + std::to_string(segment) + "; it must be at least 1");
  if (!(logit_softcap >= 0))
    throw py::value_error("logit_softcap is " + std::to_string(logit_softcap) + "; it must be positive, or 0 for no cap");
  if (need_dbias && bias_.is_none()) throw py::value_error("need_dbias is set but there is no bias");
  const DType dtype = h.dtype, statistics = kernels::statistics_dtype(dtype);
  const Array labels = vector_of(labels_, "labels", "int64", T);
  if (!labels.data && T > 0) throw py::value_error("labels is None; it must be int64 with length " + std::to_string(T));
  const Array bias = vector_of(bias_, "bias", hidden.dtype, V);
  const Array row_weights = vector_of(row_weights_, "row_weights", dtype_name(statistics), T);

  py::array losses = new_array(dtype_name(statistics), {T}), total = new_array(dtype_name(statistics), {});
  py::object dhidden = py::none(), dweight = py::none(), dbias = py::none();
  kernels::LinearCrossEntropyTensors io{h,
                                        w,
                                        bias.data,
                                        static_cast<const int64_t*>(labels.data),
                                        row_weights.data,
                                        const_cast<void*>(losses.data()),
                                        const_cast<void*>(total.data()),
                                        {},
                                        {},
                                        nullptr};
  if (need_dhidden) {
    const py::array out = new_array(dtype_name(dtype), {T, C});
    io.dhidden = matrix_of(out, dtype);
    dhidden = out;
  }
  if (need_dweight) {
    const py::array out = new_array(dtype_name(dtype), {V, C});
    io.dweight = matrix_of(out, dtype);
    dweight = out;
  }
  if (need_dbias) {
    const py::array out = new_array(dtype_name(dtype), {V});
    io.dbias = const_cast<void*>(out.data());
    dbias = out;
  }
  HostContext host(threads);
  {
    py::gil_scoped_release release;
    kernels::Context context = host.context();
    kernels::OwnGemm own(context.parallel, context.workspace, context.isa);
    context.gemm = own.gemm();
    kernels::linear_cross_entropy_cpu({segment, ignore_index, logit_scale, logit_softcap}, io, context);
  }
  return py::make_tuple(total, losses, dhidden, dweight, dbias);
}

/// An array in CUDA memory; null data for None where that is allowed.
Array cuda_array(const py::object& object, const std::string& name, const std::string& dtype, size_t dims, int64_t stream,
                 bool optional = false) {
  if (object.is_none()) {
    if (optional) return {};
    throw py::value_error(name + " is None; give an array in CUDA memory");
  }
  Array out = borrow(object, name, dtype, dims, stream);
  if (!out.cuda) throw py::value_error(name + " is in CPU memory; this kernel takes arrays in CUDA memory");
  if (out.shape[dims - 1] > 1 && out.strides[dims - 1] != 1)
    throw py::value_error(name + ": the last dimension must be contiguous");
  return out;
}

void cross_entropy_rows(const py::object& logits_, const py::object& labels_, const py::object& losses_,
                        const py::object& gradient_, const py::object& bias_, const py::object& row_weights_,
                        int64_t ignore_index, float logit_scale, float logit_softcap, int64_t stream) {
  const Array logits = cuda_array(logits_, "logits", "float32", 2, stream);
  const Array labels = cuda_array(labels_, "labels", "int64", 1, stream);
  const Array losses = cuda_array(losses_, "losses", "float32", 1, stream);
  const std::string dtype = gradient_.is_none() ? bias_.is_none() ? "float32" : borrow(bias_, "bias", stream).dtype
                                                : borrow(gradient_, "gradient", stream).dtype;
  const Array gradient = cuda_array(gradient_, "gradient", dtype, 2, stream, true);
  const Array bias = cuda_array(bias_, "bias", dtype, 1, stream, true);
  const Array row_weights = cuda_array(row_weights_, "row_weights", "float32", 1, stream, true);
  const int64_t rows = logits.shape[0], V = logits.shape[1];
  const auto check_length = [&](const Array& x, const char* name, int64_t length) {
    if (!x.data) return;
    check_device(x, name, logits, "logits");
    if (x.shape.back() != length || x.shape.front() != (x.shape.size() == 2 ? rows : length))
      throw py::value_error(std::string(name) + " does not fit logits [" + std::to_string(rows) + ", " + std::to_string(V) +
                            "]");
  };
  check_length(labels, "labels", rows), check_length(losses, "losses", rows), check_length(row_weights, "row_weights", rows);
  check_length(gradient, "gradient", V), check_length(bias, "bias", V);
  if (!(logit_softcap >= 0))
    throw py::value_error("logit_softcap is " + std::to_string(logit_softcap) + "; it must be positive, or 0 for no cap");
  const DType type = dtype == "float32" ? DType::kFloat32 : dtype_of(gradient.data ? gradient : bias, "gradient");
  [[maybe_unused]] const kernels::CrossEntropyRows call{type,
                                                        static_cast<const float*>(logits.data),
                                                        rows,
                                                        V,
                                                        logits.strides[0],
                                                        gradient.data,
                                                        gradient.data ? gradient.strides[0] : 0,
                                                        nullptr,
                                                        static_cast<const int64_t*>(labels.data),
                                                        static_cast<const float*>(row_weights.data),
                                                        bias.data,
                                                        ignore_index,
                                                        logit_scale,
                                                        logit_softcap,
                                                        static_cast<float*>(losses.data)};
  run_on(
      logits, 0, stream, [](const auto&) {},
      [&]([[maybe_unused]] const auto& context) { LONGSPAN_CUDA_ENTRY(kernels::cross_entropy_rows_cuda(call, context)); });
}

}  // namespace

void bind_loss(py::module_& m) {
  m.def("cross_entropy_rows", &cross_entropy_rows, py::arg("logits"), py::arg("labels"), py::arg("losses"), py::kw_only(),
        py::arg("gradient") = py::none(), py::arg("bias") = py::none(), py::arg("row_weights") = py::none(),
        py::arg("ignore_index") = -100, py::arg("logit_scale") = 1.0f, py::arg("logit_softcap") = 0.0f,
        py::arg("stream") = 1,
        R"(CUDA only: losses and gradients of rows of logits (raw products of hidden and weight), on `stream`.

logits [rows, V] float32, labels [rows] int64, losses [rows] float32 (written), gradient [rows, V] in float32, float16 or bfloat16
(written; None for none; may be logits), bias [V] in the dtype of gradient, row_weights [rows] float32. A label out of range
gives nan.)");
  m.def("linear_cross_entropy", &linear_cross_entropy, py::arg("hidden"), py::arg("weight"), py::arg("labels"),
        py::kw_only(), py::arg("bias") = py::none(), py::arg("row_weights") = py::none(), py::arg("segment") = 2048,
        py::arg("ignore_index") = -100, py::arg("logit_scale") = 1.0, py::arg("logit_softcap") = 0.0,
        py::arg("need_dhidden") = false, py::arg("need_dweight") = false, py::arg("need_dbias") = false,
        py::arg("threads") = 0,
        R"(Weighted cross-entropy of a language-model head, one segment of logits at a time.

hidden [T,C], weight [V,C] and bias [V]: float32, float64 or bfloat16; labels [T] int64; row_weights [T] float32 (float64 for
float64). Returns NumPy arrays (total, losses [T], dhidden, dweight, dbias): the sum of the losses, the losses, and the
gradients of the sum that were asked for (None otherwise; bfloat16 ones are uint16 bits). threads 0 uses all cores.)");
}

}  // namespace longspan::host
