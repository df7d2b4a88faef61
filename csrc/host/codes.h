#pragma once
// Codes, codebooks and selections among the arrays of a call.
#include "host/arguments.h"
#include "kernels/pq/selection.h"

namespace longspan::host {

/// A codebook [G,M,E,d] that fits H heads of D components; throws py::value_error that says what does not.
kernels::Codebook codebook_of(const Array& codebook, const kernels::View<4>& z, const char* z_name);

/// Sizes of the tokens that a selection is of.
struct Tokens {
  int64_t B, H, K, T, S;
};

/// The arrays of a selection; threshold and cut may be missing.
struct SelectionArrays {
  Array key_codes, query_codes, codebook, threshold, cut;
  int64_t subspaces = 0, codewords = 0;

  /// Checked against the call: q [B,H,T,D], which may have null data where query_codes are given.
  kernels::Selection selection(const kernels::View<4>& q, const Tokens& tokens) const;
};

}  // namespace longspan::host
