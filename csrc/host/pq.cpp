// longspan.kernels.pq_encode, pq_loss and pq_stats: the product quantiser on plain arrays.
#include "kernels/pq/pq.h"

#include "host/bind.h"
#include "host/codes.h"
#include "host/device.h"

namespace longspan::host {
namespace {

/// Vectors and the codebook of one call.
struct Call {
  Array z, codebook;
  Arguments others;
  kernels::View<4> vectors;

  Call(const py::handle& z_, Stream stream)
      : z(borrow(z_, "z", stream)), others(z, "z", stream), vectors(view_of<4>(z, "z")) {}

  kernels::Codebook with(const py::handle& codebook_, Stream stream) {
    codebook = borrow(codebook_, "codebook", stream);
    check_device(codebook, "codebook", z, "z");
    return codebook_of(codebook, vectors, "z");
  }
  std::vector<int64_t> codes_shape(const kernels::Codebook& book) const {
    return {z.shape[0], z.shape[1], z.shape[2], kernels::code_words(book.subspaces, book.codewords)};
  }
  Array codes(const py::handle& codes_, const kernels::Codebook& book) const {
    Array codes = others.input(codes_, "codes", codes_shape(book), "int32");
    check_contiguous(codes, "codes");
    return codes;
  }
};

int power_of(int power) {
  if (power != 1 && power != 2) throw py::value_error("power is " + std::to_string(power) + "; allowed: 1, 2");
  return power;
}

py::object pq_encode(const py::handle& z_, const py::handle& codebook_, int power, int threads, const py::object& codes_,
                     int64_t stream) {
  Call call(z_, stream);
  const kernels::Codebook book = call.with(codebook_, stream);
  power_of(power);
  const Output codes = call.others.output(codes_, "codes", call.codes_shape(book), "int32");
  check_contiguous(codes.array, "codes");
  const kernels::PqTensors io{call.vectors, static_cast<int32_t*>(codes.array.data)};
  run_on(
      call.z, threads, stream, [&](const auto& context) { kernels::pq_encode_cpu(book, power, io, context); },
      [&](const auto& context) { LONGSPAN_CUDA_ENTRY(kernels::pq_encode_cuda(book, power, io, context)); });
  return codes.object;
}

py::tuple pq_loss(const py::handle& z_, const py::handle& codebook_, const py::handle& codes_, int power, double eps,
                  bool need_dz, int threads, const py::object& loss_, const py::object& dcodebook_, const py::object& dz_,
                  int64_t stream) {
  Call call(z_, stream);
  const kernels::Codebook book = call.with(codebook_, stream);
  power_of(power);
  const Array codes = call.codes(codes_, book);
  const kernels::DType statistics = kernels::statistics_dtype(call.vectors.dtype);
  const Output loss = call.others.output(loss_, "loss", {1}, statistics);
  const Output dcodebook = call.others.output(dcodebook_, "dcodebook", call.codebook.shape, statistics);
  check_contiguous(dcodebook.array, "dcodebook");
  Output dz{py::none(), {}};
  if (need_dz) dz = call.others.output(dz_, "dz", call.z.shape, call.vectors.dtype);
  const kernels::PqLossTensors io{call.vectors, need_dz ? view_of<4>(dz.array, "dz") : kernels::View<4>{},
                                  static_cast<const int32_t*>(codes.data), loss.array.data, dcodebook.array.data};
  run_on(
      call.z, threads, stream, [&](const auto& context) { kernels::pq_loss_cpu(book, power, eps, 1.0, io, context); },
      [&](const auto& context) { LONGSPAN_CUDA_ENTRY(kernels::pq_loss_cuda(book, power, eps, 1.0, io, context)); });
  return py::make_tuple(loss.object, dcodebook.object, dz.object);
}

py::tuple pq_stats(const py::handle& z_, const py::handle& codes_, int64_t groups, int64_t subspaces, int64_t codewords,
                   int64_t width, int threads, const py::object& sums_, const py::object& counts_, int64_t stream) {
  const Call call(z_, stream);
  if (groups < 1 || width < 1 || subspaces < 1 || subspaces > kernels::kMaxSubspaces || codewords < 1 ||
      codewords > kernels::kMaxCodewords || call.z.shape[1] % groups || subspaces * width < call.z.shape[3] ||
      (subspaces - 1) * width >= call.z.shape[3])
    throw py::value_error("groups must divide the heads, subspaces (1 to 64) x width just hold D, codewords be 1 to 256");
  const kernels::Codebook book{nullptr, groups, subspaces, codewords, width};
  const Array codes = call.codes(codes_, book);
  const Output sums = call.others.output(sums_, "sums", {groups, subspaces, codewords, width},
                                         kernels::statistics_dtype(call.vectors.dtype));
  const Output counts = call.others.output(counts_, "counts", {groups, subspaces, codewords}, "int32");
  check_contiguous(sums.array, "sums");
  check_contiguous(counts.array, "counts");
  const kernels::PqStatistics io{call.vectors, static_cast<const int32_t*>(codes.data), sums.array.data,
                                 static_cast<int32_t*>(counts.array.data)};
  run_on(
      call.z, threads, stream, [&](const auto& context) { kernels::pq_stats_cpu(book, io, context); },
      [&](const auto& context) { LONGSPAN_CUDA_ENTRY(kernels::pq_stats_cuda(book, io, context)); });
  return py::make_tuple(sums.object, counts.object);
}

}  // namespace

void bind_pq(py::module_& m) {
  m.def("pq_encode", &pq_encode, py::arg("z"), py::arg("codebook"), py::kw_only(), py::arg("power") = 2,
        py::arg("threads") = 0, py::arg("codes") = py::none(), py::arg("stream") = 1,
        R"(Numbers of the nearest codewords: z [B,H,T,D], codebook [G,M,E,d] -> codes int32 [B,H,T,W].

4 bits a code for E up to 16, else 8, lowest first. power: 1 or 2, of the differences that a distance adds up. Memory, streams and
codes as in attention_fwd.)");
  m.def("pq_loss", &pq_loss, py::arg("z"), py::arg("codebook"), py::arg("codes"), py::kw_only(), py::arg("power") = 2,
        py::arg("eps") = 1e-5, py::arg("need_dz") = false, py::arg("threads") = 0, py::arg("loss") = py::none(),
        py::arg("dcodebook") = py::none(), py::arg("dz") = py::none(), py::arg("stream") = 1,
        R"(Loss of a codebook on vectors z with their codes, and its gradients: (loss [1], dcodebook [G,M,E,d], dz or None).

mean (soft - hard)^2 + mean (z - hard)^2, soft the mean of codewords weighted by 1 / max(distance, eps).)");
  m.def("pq_stats", &pq_stats, py::arg("z"), py::arg("codes"), py::arg("groups"), py::arg("subspaces"), py::arg("codewords"),
        py::arg("width"), py::kw_only(), py::arg("threads") = 0, py::arg("sums") = py::none(),
        py::arg("counts") = py::none(), py::arg("stream") = 1,
        "Per codeword the sum [G,M,E,d] and number int32 [G,M,E] of the vectors with its code: what k-means needs.");
}

}  // namespace longspan::host
