#pragma once
// Token arrays and codes of a call, from torch's tensors.
#include <cstdint>

#include "kernels/attention/mask.h"
#include "kernels/pq/selection.h"
#include "ops/tensor.h"

namespace longspan::ops {

/// A number that positions are compared with, which have 32 bits.
inline int32_t narrowed(int64_t value, const char* name, const char* op) {
  STD_TORCH_CHECK(value >= 0 && value <= INT32_MAX, "longspan::", op, ": ", name, " is ", value, "; allowed: 0 to 2^31 - 1");
  return int32_t(value);
}

/// layout int32 [2 or 3, 1 or B, length]: doc, pos and, if there is a third plane, flag.
inline kernels::Layout layout_of(const std::optional<Tensor>& layout, int64_t batch, int64_t length, const char* op) {
  if (!layout) return {};
  STD_TORCH_CHECK(layout->scalar_type() == ScalarType::Int && layout->is_contiguous() && layout->dim() == 3,
                  "longspan::", op, ": a layout is a contiguous int32 tensor [2 or 3, B or 1, length]");
  const int64_t rows = layout->size(1);
  STD_TORCH_CHECK(layout->size(0) >= 2 && (rows == 1 || rows == batch) && layout->size(2) == length, "longspan::", op,
                  ": a layout does not fit its tokens");
  const auto* data = static_cast<const int32_t*>(layout->const_data_ptr());
  const int64_t plane = rows * length;
  return {data, data + plane, layout->size(0) > 2 ? data + 2 * plane : nullptr, rows == 1 ? 0 : length};
}

/// codebook [G,M,E,d], contiguous, in the dtype that `like` is computed in.
inline kernels::Codebook codebook_of(const Tensor& codebook, const Tensor& like, const char* op) {
  STD_TORCH_CHECK(codebook.dim() == 4 && codebook.is_contiguous() && codebook.scalar_type() == statistics_type(like) &&
                      codebook.size(1) >= 1 && codebook.size(1) <= kernels::kMaxSubspaces && codebook.size(2) >= 1 &&
                      codebook.size(2) <= kernels::kMaxCodewords && codebook.size(3) >= 1,
                  "longspan::", op,
                  ": codebook must be contiguous [G,M,E,d] with M up to 64 and E up to 256, float32 (float64 for float64)");
  return {codebook.const_data_ptr(), codebook.size(0), codebook.size(1), codebook.size(2), codebook.size(3)};
}

/// int32 codes [B,heads,length,W], contiguous.
inline const int32_t* codes_of(const Tensor& codes, const kernels::Codebook& codebook, int64_t batch, int64_t heads,
                               int64_t length, const char* op) {
  STD_TORCH_CHECK(codes.dim() == 4 && codes.is_contiguous() && codes.scalar_type() == ScalarType::Int &&
                      codes.size(0) == batch && codes.size(1) == heads && codes.size(2) == length &&
                      codes.size(3) == kernels::code_words(codebook.subspaces, codebook.codewords),
                  "longspan::", op, ": codes must be contiguous int32 [B,heads,tokens,W] of that codebook");
  return static_cast<const int32_t*>(codes.const_data_ptr());
}

/// Sizes of the tokens that a selection is of.
struct Tokens {
  int64_t B, H, K, T, S;
};

/// What reads codes of queries, or the queries themselves and a codebook, and of keys; without threshold and cut.
inline kernels::Selection selection_of(const Tensor& key_codes, const std::optional<Tensor>& query_codes,
                                       const std::optional<Tensor>& codebook, const std::optional<Tensor>& q,
                                       const Tokens& tokens, int64_t subspaces, int64_t codewords, const char* op) {
  kernels::Selection out;
  STD_TORCH_CHECK(query_codes.has_value() != codebook.has_value(), "longspan::", op,
                  ": scores need either query_codes (match) or a codebook (adc)");
  out.scorer = query_codes ? kernels::Scorer::kMatch : kernels::Scorer::kAdc;
  if (query_codes) {
    STD_TORCH_CHECK(
        subspaces >= 1 && subspaces <= kernels::kMaxSubspaces && codewords >= 1 && codewords <= kernels::kMaxCodewords,
        "longspan::", op, ": subspaces must be 1 to 64 and codewords 1 to 256");
    out.codebook = {nullptr, 1, subspaces, codewords, 0};
    out.query_codes = codes_of(*query_codes, out.codebook, tokens.B, tokens.H, tokens.T, op);
  } else {
    out.codebook = codebook_of(*codebook, *q, op);
    const int64_t M = out.codebook.subspaces, d = out.codebook.width, D = q->size(3);
    STD_TORCH_CHECK(M * d >= D && (M - 1) * d < D && tokens.K % out.codebook.groups == 0, "longspan::", op,
                    ": the codebook does not fit D and the key heads");
  }
  out.key_codes = codes_of(key_codes, out.codebook, tokens.B, tokens.K, tokens.S, op);
  return out;
}

/// Puts threshold and cut [B,H,T] into a selection.
inline void set_threshold(kernels::Selection& selection, const Tensor& threshold, const Tensor& cut, const Tokens& tokens,
                          const char* op) {
  const ScalarType type = selection.scorer == kernels::Scorer::kMatch ? ScalarType::Char : ScalarType::Short;
  const auto fits = [&](const Tensor& x) {
    return x.is_contiguous() && x.dim() == 3 && x.size(0) == tokens.B && x.size(1) == tokens.H && x.size(2) == tokens.T;
  };
  STD_TORCH_CHECK(threshold.scalar_type() == type && cut.scalar_type() == ScalarType::Int && fits(threshold) && fits(cut),
                  "longspan::", op, ": threshold must be int8 (match) or int16 (adc) and cut int32, contiguous [B,H,T]");
  selection.threshold = threshold.const_data_ptr();
  selection.cut = static_cast<const int32_t*>(cut.const_data_ptr());
}

}  // namespace longspan::ops
