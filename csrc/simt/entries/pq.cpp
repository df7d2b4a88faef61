// pq_encode(z [B,H,T,stride], D, codebook, power) -> codes [B,H,T,W]
// pq_loss(z, D, codebook, codes, power, eps, need_dz) -> loss [1], dcodebook, dz [B,H,T,D]
// pq_stats(z, D, codes, groups, subspaces, codewords, width) -> sums, counts
#include "pq/pq.h"

#include "simt/entries/dtype.h"
#include "simt/entries/selection.h"
#include "simt/entry.h"

namespace simt {
namespace {

using namespace longspan::kernels;

/// Vectors [B,H,T,D] whose rows are the last dimension apart.
View<4> vectors(Device& device, const py::dict& arguments, DType dtype) {
  const Shape s = shape(arguments, "z");
  return {input_bytes(device, arguments, "z", size_t(element_size(dtype))),
          dtype,
          {s.at(0), s.at(1), s.at(2), value<int64_t>(arguments, "D")},
          {s.at(1) * s.at(2) * s.at(3), s.at(2) * s.at(3), s.at(3), 1}};
}

CudaContext context_of(Device& device) {
  return {nullptr,
          {&device, [](void* self, int64_t bytes) { return static_cast<Device*>(self)->scratch("scratch", size_t(bytes)); }},
          {}};
}

py::dict pq_encode(Device& device, const py::dict& arguments) {
  const View<4> z = vectors(device, arguments, dtype_named(value<std::string>(arguments, "dtype")));
  const Codebook book = codebook_of(device, arguments);
  auto* codes = output<int32_t>(device, "codes",
                                {z.size[0], z.size[1], z.size[2], code_words(book.subspaces, book.codewords)}, "int32");
  pq_encode_cuda(book, value<int>(arguments, "power"), {z, codes}, context_of(device));
  return {};
}
SIMT_ENTRY(pq_encode);

py::dict pq_loss(Device& device, const py::dict& arguments) {
  const View<4> z = vectors(device, arguments, dtype_named(value<std::string>(arguments, "dtype")));
  const Codebook book = codebook_of(device, arguments);
  View<4> dz{};
  if (value_or(arguments, "need_dz", false)) {
    const Shape s{z.size[0], z.size[1], z.size[2], z.size[3]};
    dz = {output_bytes(device, "dz", s, numpy_name(z.dtype)),
          z.dtype,
          {s[0], s[1], s[2], s[3]},
          {s[1] * s[2] * s[3], s[2] * s[3], s[3], 1}};
  }
  const PqLossTensors io{z, dz, input<int32_t>(device, arguments, "codes"), output<float>(device, "loss", {1}, "float32"),
                         output<float>(device, "dcodebook", shape(arguments, "codebook"), "float32")};
  pq_loss_cuda(book, value<int>(arguments, "power"), value_or(arguments, "eps", 1e-5), 1.0, io, context_of(device));
  return {};
}
SIMT_ENTRY(pq_loss);

py::dict pq_stats(Device& device, const py::dict& arguments) {
  const View<4> z = vectors(device, arguments, dtype_named(value<std::string>(arguments, "dtype")));
  const Codebook book{nullptr, value<int64_t>(arguments, "groups"), value<int64_t>(arguments, "subspaces"),
                      value<int64_t>(arguments, "codewords"), value<int64_t>(arguments, "width")};
  const Shape shape{book.groups, book.subspaces, book.codewords};
  const PqStatistics io{z, input<int32_t>(device, arguments, "codes"),
                        output<float>(device, "sums", {shape[0], shape[1], shape[2], book.width}, "float32"),
                        output<int32_t>(device, "counts", shape, "int32")};
  pq_stats_cuda(book, io, context_of(device));
  return {};
}
SIMT_ENTRY(pq_stats);

}  // namespace
}  // namespace simt
