// longspan.kernels.block_score: scores of pairs of token blocks on plain arrays.
#include "kernels/select/select.h"

#include <cmath>

#include "host/arguments.h"
#include "host/bind.h"
#include "host/device.h"

namespace longspan::host {
namespace {

using kernels::DType;

const int32_t* numbers(const Array& x, const std::string& name) {
  check_contiguous(x, name);
  return static_cast<const int32_t*>(x.data);
}

py::object block_score(const py::handle& q_, const py::handle& k_, const py::handle& starts_, const py::handle& counts_,
                       const py::handle& segments_, int64_t most, const py::object& scale, bool causal, int threads,
                       const py::object& scores_, int64_t stream) {
  const Array q = borrow(q_, "q", stream), k = borrow(k_, "k", dtype_name(dtype_of(q, "q")), 3, stream);
  const auto queries = view_of<3>(q, "q"), keys = view_of<3>(k, "k");
  check_device(k, "k", q, "q");
  const int64_t D = queries.size[2];
  if (keys.size[0] != queries.size[0] || keys.size[2] != D || keys.size[1] < 1 || queries.size[1] % keys.size[1] || D < 1 ||
      D > 256)
    throw py::value_error("k must have the rows and columns (1 to 256) of q, and heads that divide those of q");
  const Array starts = borrow(starts_, "starts", "int32", 1, stream), counts = borrow(counts_, "counts", "int32", 1, stream);
  const Array segments = borrow(segments_, "segments", "int32", 1, stream);
  for (const auto& [x, name] : {std::pair{&starts, "starts"}, {&counts, "counts"}, {&segments, "segments"}})
    check_device(*x, name, q, "q");
  if (counts.shape[0] != starts.shape[0] || segments.shape[0] < 1 || most < 0)
    throw py::value_error("counts must be as long as starts, segments [S+1] and most_blocks not negative");
  const Output scores =
      Arguments(q, "q", stream)
          .output(scores_, "scores", {segments.shape[0] - 1, most, most}, kernels::statistics_dtype(queries.dtype));
  const kernels::BlockScoreSpec spec{scale.is_none() ? 1 / std::sqrt(double(D)) : scale.cast<double>(), causal};
  const kernels::BlockScoreTensors io{queries,
                                      keys,
                                      numbers(starts, "starts"),
                                      numbers(counts, "counts"),
                                      numbers(segments, "segments"),
                                      view_of<3>(scores.array, "scores")};
  run_on(
      q, threads, stream, [&](const auto& context) { kernels::block_score_cpu(spec, io, context); },
      [&](const auto& context) { LONGSPAN_CUDA_ENTRY(kernels::block_score_cuda(spec, io, context)); });
  return scores.object;
}

}  // namespace

void bind_select(py::module_& m) {
  m.def(
      "block_score", &block_score, py::arg("q"), py::arg("k"), py::arg("starts"), py::arg("counts"), py::arg("segments"),
      py::arg("most_blocks"), py::kw_only(), py::arg("scale") = py::none(), py::arg("causal") = false,
      py::arg("threads") = 0, py::arg("scores") = py::none(), py::arg("stream") = 1,
      R"(Scores [S,N,N] of pairs of token blocks: scale / H times the largest sum over heads of max(<q, k>, 0) between them.

q [M,H,D], k [M,K,D]; starts, counts int32 [blocks]: rows of each block; segments int32 [S+1]: where the blocks of each segment begin;
N = most_blocks is at least the most blocks of a segment. scale: default D ** -0.5. causal: keys behind the query count 0. Memory,
streams and scores as in attention_fwd.)");
}

}  // namespace longspan::host
