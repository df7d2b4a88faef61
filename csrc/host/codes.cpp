#include "host/codes.h"

#include <sstream>

namespace longspan::host {
namespace {

void check(const Array& x, const std::string& name, const std::string& dtype, const std::vector<int64_t>& shape) {
  if (x.dtype == dtype && x.shape == shape) return check_contiguous(x, name);
  std::ostringstream wanted;
  for (size_t i = 0; i < shape.size(); ++i) wanted << (i ? ", " : "") << shape[i];
  throw py::value_error(name + " must be " + dtype + " [" + wanted.str() + "]");
}

void check_numbers(int64_t subspaces, int64_t codewords) {
  if (subspaces < 1 || subspaces > kernels::kMaxSubspaces || codewords < 1 || codewords > kernels::kMaxCodewords)
    throw py::value_error("subspaces are " + std::to_string(subspaces) + " and codewords " + std::to_string(codewords) +
                          "; 1 to " + std::to_string(kernels::kMaxSubspaces) + " and 1 to " +
                          std::to_string(kernels::kMaxCodewords) + " are allowed");
}

}  // namespace

kernels::Codebook codebook_of(const Array& codebook, const kernels::View<4>& z, const char* z_name) {
  const std::string dtype = dtype_name(kernels::statistics_dtype(z.dtype));
  if (codebook.shape.size() != 4 || codebook.dtype != dtype)
    throw py::value_error("codebook must be " + dtype + " [G,M,E,d], the dtype that " + z_name + " is computed in");
  check_contiguous(codebook, "codebook");
  const kernels::Codebook out{codebook.data, codebook.shape[0], codebook.shape[1], codebook.shape[2], codebook.shape[3]};
  check_numbers(out.subspaces, out.codewords);
  if (out.groups < 1 || out.width < 1 || z.size[1] % out.groups || out.subspaces * out.width < z.size[3] ||
      (out.subspaces - 1) * out.width >= z.size[3])
    throw py::value_error("the codebook of " + std::to_string(out.groups) + " groups and " + std::to_string(out.subspaces) +
                          " x " + std::to_string(out.width) + " components does not fit the " + std::to_string(z.size[1]) +
                          " heads of " + std::to_string(z.size[3]) + " components of " + z_name);
  return out;
}

kernels::Selection SelectionArrays::selection(const kernels::View<4>& q, const Tokens& t) const {
  kernels::Selection out;
  if (!query_codes.data == !codebook.data)
    throw py::value_error("give either query_codes (equal codes are counted) or a codebook (asymmetric scores)");
  out.scorer = codebook.data ? kernels::Scorer::kAdc : kernels::Scorer::kMatch;
  if (codebook.data) {
    out.codebook = codebook_of(codebook, q, "q");
    if (t.K % out.codebook.groups) throw py::value_error("the codebook's groups must divide the key heads");
  } else {
    check_numbers(subspaces, codewords);
    out.codebook = {nullptr, 1, subspaces, codewords, 0};
  }
  const int64_t W = kernels::code_words(out.codebook.subspaces, out.codebook.codewords);
  check(key_codes, "key_codes", "int32", {t.B, t.K, t.S, W});
  out.key_codes = static_cast<const int32_t*>(key_codes.data);
  if (query_codes.data) {
    check(query_codes, "query_codes", "int32", {t.B, t.H, t.T, W});
    out.query_codes = static_cast<const int32_t*>(query_codes.data);
  }
  if (threshold.data || cut.data) {
    check(threshold, "threshold", out.scorer == kernels::Scorer::kMatch ? "int8" : "int16", {t.B, t.H, t.T});
    check(cut, "cut", "int32", {t.B, t.H, t.T});
    out.threshold = threshold.data;
    out.cut = static_cast<const int32_t*>(cut.data);
  }
  return out;
}

}  // namespace longspan::host
