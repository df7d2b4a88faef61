// topl_threshold(q [B,H,T,stride] and codebook, or query_codes; key_codes, ...) -> threshold, cut, kept [B,H,T]
// topl_indices(..., threshold, cut, slots) -> indices [B,H,T,slots]
// adc_table(q, D, codebook) -> tables [B,H,T,M,16 or 256]
#include "topl/topl.h"

#include "simt/entries/dtype.h"
#include "simt/entries/selection.h"
#include "simt/entry.h"

namespace simt {
namespace {

using namespace longspan::kernels;

/// What all three are given.
struct ToplCall {
  ToplSpec spec{};
  ToplTensors io{};
  CudaContext context;

  ToplCall(Device& device, const py::dict& arguments) {
    const bool adc = given(arguments, "codebook");
    const Shape s = shape(arguments, adc ? "q" : "query_codes");
    spec.B = s.at(0), spec.H = s.at(1), spec.T = s.at(2);
    if (adc) {
      const DType dtype = dtype_named(value<std::string>(arguments, "dtype"));
      io.q = {input_bytes(device, arguments, "q", size_t(element_size(dtype))),
              dtype,
              {s[0], s[1], s[2], value<int64_t>(arguments, "D")},
              {s[1] * s[2] * s[3], s[2] * s[3], s[3], 1}};
    }
    context = {
        nullptr,
        {&device, [](void* self, int64_t bytes) { return static_cast<Device*>(self)->scratch("scratch", size_t(bytes)); }},
        {}};
    if (!given(arguments, "key_codes")) {
      io.selection.scorer = Scorer::kAdc;
      io.selection.codebook = codebook_of(device, arguments);
      return;
    }
    io.selection = selection_of(device, arguments);
    spec.K = shape(arguments, "key_codes").at(1), spec.S = shape(arguments, "key_codes").at(2);
    spec.pattern.kind = PatternKind::kSelected;
    spec.pattern.causal = value_or(arguments, "causal", true);
    spec.pattern.window = value_or(arguments, "window", 0), spec.pattern.sinks = value_or(arguments, "sinks", 0);
    spec.pattern.model_window = value_or(arguments, "model_window", 0);
    spec.queries = layout_of(device, arguments, "query_layout"), spec.keys = layout_of(device, arguments, "key_layout");
  }
  Shape rows() const { return {spec.B, spec.H, spec.T}; }
};

py::dict topl_threshold(Device& device, const py::dict& arguments) {
  ToplCall call(device, arguments);
  call.spec.budget = value<int64_t>(arguments, "budget");
  const char* type = call.io.selection.scorer == Scorer::kMatch ? "int8" : "int16";
  const ToplThreshold out{output_bytes(device, "threshold", call.rows(), type),
                          output<int32_t>(device, "cut", call.rows(), "int32"),
                          output<int32_t>(device, "kept", call.rows(), "int32")};
  topl_threshold_cuda(call.spec, call.io, out, call.context);
  return {};
}
SIMT_ENTRY(topl_threshold);

py::dict topl_indices(Device& device, const py::dict& arguments) {
  ToplCall call(device, arguments);
  call.io.selection.threshold =
      input_bytes(device, arguments, "threshold", call.io.selection.scorer == Scorer::kMatch ? 1 : 2);
  call.io.selection.cut = input<int32_t>(device, arguments, "cut");
  const int64_t slots = value<int64_t>(arguments, "slots");
  Shape lists = call.rows();
  lists.push_back(slots);
  topl_indices_cuda(call.spec, call.io, slots, output<int32_t>(device, "indices", lists, "int32"), call.context);
  return {};
}
SIMT_ENTRY(topl_indices);

py::dict adc_table(Device& device, const py::dict& arguments) {
  const ToplCall call(device, arguments);
  const Codebook& book = call.io.selection.codebook;
  auto* tables = output<uint8_t>(
      device, "tables", {call.spec.B, call.spec.H, call.spec.T, book.subspaces, py::ssize_t(1) << code_bits(book.codewords)},
      "uint8");
  adc_table_cuda(call.spec, call.io, tables, call.context);
  return {};
}
SIMT_ENTRY(adc_table);

}  // namespace
}  // namespace simt
