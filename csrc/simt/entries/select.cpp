// block_score(q [M,H,stride], k [M,K,stride], D, starts, counts, segments, most, ...) -> scores [S,N,N]
#include "select/select.h"

#include "common/simt.h"
#include "simt/entries/dtype.h"
#include "simt/entry.h"

namespace simt {
namespace {

using namespace longspan::kernels;

py::dict block_score(Device& device, const py::dict& arguments) {
  const DType dtype = dtype_named(value<std::string>(arguments, "dtype"));
  const int64_t D = value<int64_t>(arguments, "D"), most = value<int64_t>(arguments, "most");
  const auto rows = [&](const char* name) {
    const Shape s = shape(arguments, name);
    return View<3>{input_bytes(device, arguments, name, size_t(element_size(dtype))),
                   dtype,
                   {s.at(0), s.at(1), D},
                   {s.at(1) * s.at(2), s.at(2), 1}};
  };
  const int64_t S = shape(arguments, "segments").at(0) - 1;
  const View<3> q = rows("q"), k = rows("k");
  void* scores = output_bytes(device, "scores", {S, most, most}, "float32");
  block_score_cuda({value<double>(arguments, "scale"), value_or(arguments, "causal", false)},
                   {q,
                    k,
                    input<int32_t>(device, arguments, "starts"),
                    input<int32_t>(device, arguments, "counts"),
                    input<int32_t>(device, arguments, "segments"),
                    {scores, DType::kFloat32, {S, most, most}, {most * most, most, 1}}},
                   {});
  return {};
}
SIMT_ENTRY(block_score);

}  // namespace
}  // namespace simt
