// longspan.kernels.topl_threshold, topl_indices and adc_table: the keys that queries keep, on plain arrays.
#include "kernels/topl/topl.h"

#include "host/bind.h"
#include "host/codes.h"
#include "host/device.h"
#include "host/layout.h"

namespace longspan::host {
namespace {

/// Queries or their codes, keys' codes, and what may be reached of them.
struct Call {
  Array q, query_layout, key_layout;
  SelectionArrays arrays;
  kernels::ToplSpec spec{};
  kernels::ToplTensors io{};

  Call(const py::handle& key_codes, const py::object& q_, const py::object& codebook, const py::object& query_codes,
       int64_t subspaces, int64_t codewords, bool causal, int window, int sinks, int model_window,
       const py::object& query_layout_, const py::object& key_layout_, int64_t stream) {
    const auto take = [&](const py::object& object, const char* name) {
      return object.is_none() ? Array{} : borrow(object, name, stream);
    };
    arrays.key_codes = borrow(key_codes, "key_codes", "int32", 4, stream);
    arrays.codebook = take(codebook, "codebook"), arrays.query_codes = take(query_codes, "query_codes");
    arrays.subspaces = subspaces, arrays.codewords = codewords;
    q = take(q_, "q");
    if (!q.data != !arrays.codebook.data) throw py::value_error("q and codebook go together");
    const Array& queries = q.data ? q : arrays.query_codes;
    if (queries.shape.size() != 4) throw py::value_error("give query_codes, or q [B,H,T,D] and a codebook");
    for (const auto& [x, name] : {std::pair{&q, "q"}, {&arrays.codebook, "codebook"}, {&arrays.query_codes, "query_codes"}})
      if (x->data) check_device(*x, name, arrays.key_codes, "key_codes");
    spec.B = queries.shape[0], spec.H = queries.shape[1], spec.T = queries.shape[2];
    spec.K = arrays.key_codes.shape[1], spec.S = arrays.key_codes.shape[2];
    if (spec.K < 1 || spec.H % spec.K)
      throw py::value_error(std::to_string(spec.H) + " query heads are not a multiple of " + std::to_string(spec.K) +
                            " key heads");
    if (q.data) io.q = view_of<4>(q, "q");
    io.selection = arrays.selection(io.q, {spec.B, spec.H, spec.K, spec.T, spec.S});
    if (window < 0 || sinks < 0 || model_window < 0)
      throw py::value_error("window, sinks and model_window must not be negative");
    spec.pattern.kind = kernels::PatternKind::kSelected, spec.pattern.causal = causal;
    spec.pattern.window = window, spec.pattern.sinks = sinks, spec.pattern.model_window = model_window;
    set_layout(query_layout_, "query_layout", query_layout, spec.queries, stream);
    set_layout(key_layout_, "key_layout", key_layout, spec.keys, stream);
    if (!spec.queries.doc != !spec.keys.doc || (!spec.keys.doc && spec.T != spec.S))
      throw py::value_error(std::to_string(spec.T) + " queries and " + std::to_string(spec.S) +
                            " keys need both query_layout and key_layout");
    check_layout(query_layout, "query_layout", spec.B, spec.T, arrays.key_codes, "key_codes");
    check_layout(key_layout, "key_layout", spec.B, spec.S, arrays.key_codes, "key_codes");
  }

  Arguments arguments(int64_t stream) const { return {arrays.key_codes, "key_codes", stream}; }
  std::vector<int64_t> rows() const { return {spec.B, spec.H, spec.T}; }
  const char* threshold_type() const { return io.selection.scorer == kernels::Scorer::kMatch ? "int8" : "int16"; }
};

py::tuple topl_threshold(const py::handle& key_codes, int64_t budget, const py::object& q, const py::object& codebook,
                         const py::object& query_codes, int64_t subspaces, int64_t codewords, bool causal, int window,
                         int sinks, int model_window, const py::object& query_layout, const py::object& key_layout,
                         int threads, const py::object& threshold_, const py::object& cut_, const py::object& kept_,
                         int64_t stream) {
  Call call(key_codes, q, codebook, query_codes, subspaces, codewords, causal, window, sinks, model_window, query_layout,
            key_layout, stream);
  if (budget < 1) throw py::value_error("budget is " + std::to_string(budget) + "; it must be at least 1");
  call.spec.budget = budget;
  const Arguments others = call.arguments(stream);
  const Output threshold = others.output(threshold_, "threshold", call.rows(), call.threshold_type());
  const Output cut = others.output(cut_, "cut", call.rows(), "int32"),
               kept = others.output(kept_, "kept", call.rows(), "int32");
  for (const auto& [x, name] : {std::pair{&threshold, "threshold"}, {&cut, "cut"}, {&kept, "kept"}})
    check_contiguous(x->array, name);
  const kernels::ToplThreshold out{threshold.array.data, static_cast<int32_t*>(cut.array.data),
                                   static_cast<int32_t*>(kept.array.data)};
  run_on(
      call.arrays.key_codes, threads, stream,
      [&](const auto& context) { kernels::topl_threshold_cpu(call.spec, call.io, out, context); },
      [&](const auto& context) { LONGSPAN_CUDA_ENTRY(kernels::topl_threshold_cuda(call.spec, call.io, out, context)); });
  return py::make_tuple(threshold.object, cut.object, kept.object);
}

py::object topl_indices(const py::handle& key_codes, const py::handle& threshold, const py::handle& cut, int64_t slots,
                        const py::object& q, const py::object& codebook, const py::object& query_codes, int64_t subspaces,
                        int64_t codewords, bool causal, int window, int sinks, int model_window,
                        const py::object& query_layout, const py::object& key_layout, int threads,
                        const py::object& indices_, int64_t stream) {
  Call call(key_codes, q, codebook, query_codes, subspaces, codewords, causal, window, sinks, model_window, query_layout,
            key_layout, stream);
  if (slots < 0) throw py::value_error("slots must not be negative");
  const Arguments others = call.arguments(stream);
  const Array thresholds = others.input(threshold, "threshold", call.rows(), call.threshold_type());
  const Array cuts = others.input(cut, "cut", call.rows(), "int32");
  check_contiguous(thresholds, "threshold");
  check_contiguous(cuts, "cut");
  call.io.selection.threshold = thresholds.data, call.io.selection.cut = static_cast<const int32_t*>(cuts.data);
  const Output indices = others.output(indices_, "indices", {call.spec.B, call.spec.H, call.spec.T, slots}, "int32");
  check_contiguous(indices.array, "indices");
  auto* out = static_cast<int32_t*>(indices.array.data);
  run_on(
      call.arrays.key_codes, threads, stream,
      [&](const auto& context) { kernels::topl_indices_cpu(call.spec, call.io, slots, out, context); },
      [&](const auto& context) {
        LONGSPAN_CUDA_ENTRY(kernels::topl_indices_cuda(call.spec, call.io, slots, out, context));
      });
  return indices.object;
}

py::object adc_table(const py::handle& q_, const py::handle& codebook_, int threads, const py::object& tables_,
                     int64_t stream) {
  const Array q = borrow(q_, "q", stream), codebook = borrow(codebook_, "codebook", stream);
  check_device(codebook, "codebook", q, "q");
  kernels::ToplTensors io{};
  io.q = view_of<4>(q, "q");
  io.selection.scorer = kernels::Scorer::kAdc;
  io.selection.codebook = codebook_of(codebook, io.q, "q");
  kernels::ToplSpec spec{};
  spec.B = q.shape[0], spec.H = q.shape[1], spec.T = q.shape[2];
  const Output tables = Arguments(q, "q", stream)
                            .output(tables_, "tables",
                                    {spec.B, spec.H, spec.T, io.selection.codebook.subspaces,
                                     int64_t(1) << kernels::code_bits(io.selection.codebook.codewords)},
                                    "uint8");
  check_contiguous(tables.array, "tables");
  auto* out = static_cast<uint8_t*>(tables.array.data);
  run_on(
      q, threads, stream, [&](const auto& context) { kernels::adc_table_cpu(spec, io, out, context); },
      [&](const auto& context) { LONGSPAN_CUDA_ENTRY(kernels::adc_table_cuda(spec, io, out, context)); });
  return tables.object;
}

}  // namespace

void bind_topl(py::module_& m) {
  m.def(
      "topl_threshold", &topl_threshold, py::arg("key_codes"), py::arg("budget"), py::kw_only(), py::arg("q") = py::none(),
      py::arg("codebook") = py::none(), py::arg("query_codes") = py::none(), py::arg("subspaces") = 0,
      py::arg("codewords") = 0, py::arg("causal") = true, py::arg("window") = 0, py::arg("sinks") = 0,
      py::arg("model_window") = 0, py::arg("query_layout") = py::none(), py::arg("key_layout") = py::none(),
      py::arg("threads") = 0, py::arg("threshold") = py::none(), py::arg("cut") = py::none(), py::arg("kept") = py::none(),
      py::arg("stream") = 1,
      R"(Thresholds of the `budget` keys that each query keeps: (threshold, cut, kept) [B,H,T], int16 (int8 for match), int32, int32.

key_codes int32 [B,K,S,W]. Scores: with q [B,H,T,D] and codebook [G,M,E,d] asymmetric ones, with query_codes int32 [B,H,T,W],
subspaces and codewords the number of equal codes. A key is kept if it is near (window, sinks), or its score is above the threshold, or
equal and its number at least cut. Layouts, memory and streams as in attention_fwd.)");
  m.def("topl_indices", &topl_indices, py::arg("key_codes"), py::arg("threshold"), py::arg("cut"), py::arg("slots"),
        py::kw_only(), py::arg("q") = py::none(), py::arg("codebook") = py::none(), py::arg("query_codes") = py::none(),
        py::arg("subspaces") = 0, py::arg("codewords") = 0, py::arg("causal") = true, py::arg("window") = 0,
        py::arg("sinks") = 0, py::arg("model_window") = 0, py::arg("query_layout") = py::none(),
        py::arg("key_layout") = py::none(), py::arg("threads") = 0, py::arg("indices") = py::none(), py::arg("stream") = 1,
        "The kept keys as lists: int32 [B,H,T,slots], increasing, -1 behind the last; the arguments of topl_threshold.");
  m.def("adc_table", &adc_table, py::arg("q"), py::arg("codebook"), py::kw_only(), py::arg("threads") = 0,
        py::arg("tables") = py::none(), py::arg("stream") = 1,
        "Each query's product with every codeword in 8 bits of its own scale: uint8 [B,H,T,M,16 or 256].");
}

}  // namespace longspan::host
