// torch ops longspan::topl_threshold, topl_indices and adc_table: check, allocate, launch.
#include "kernels/topl/topl.h"

#include <tuple>

#include "ops/cuda.h"
#include "ops/layout.h"

namespace longspan::ops {
namespace {

/// Where an op runs.
struct Cpu {
  using Context = TorchContext;
  template <class... Arguments>
  static void threshold(const Arguments&... arguments) {
    kernels::topl_threshold_cpu(arguments...);
  }
  template <class... Arguments>
  static void indices(const Arguments&... arguments) {
    kernels::topl_indices_cpu(arguments...);
  }
  template <class... Arguments>
  static void table(const Arguments&... arguments) {
    kernels::adc_table_cpu(arguments...);
  }
};

#ifdef LONGSPAN_WITH_CUDA
struct Cuda {
  using Context = TorchCudaContext;
  template <class... Arguments>
  static void threshold(const Arguments&... arguments) {
    kernels::topl_threshold_cuda(arguments...);
  }
  template <class... Arguments>
  static void indices(const Arguments&... arguments) {
    kernels::topl_indices_cuda(arguments...);
  }
  template <class... Arguments>
  static void table(const Arguments&... arguments) {
    kernels::adc_table_cuda(arguments...);
  }
};
#endif

using MaybeTensor = std::optional<Tensor>;

/// One call's queries or their codes, keys' codes, and what may be reached of them.
struct Call {
  const char* op;
  Tokens tokens{};
  kernels::ToplSpec spec{};
  kernels::ToplTensors io{};

  Call(const char* name, const MaybeTensor& q, const MaybeTensor& query_codes, const Tensor& key_codes,
       const MaybeTensor& codebook, const MaybeTensor& q_layout, const MaybeTensor& k_layout, int64_t subspaces,
       int64_t codewords, bool causal, int64_t window, int64_t sinks, int64_t model_window)
      : op(name) {
    STD_TORCH_CHECK(q.has_value() == codebook.has_value() && q.has_value() != query_codes.has_value(), "longspan::", op,
                    ": scores need either query_codes (match), or q and a codebook (adc)");
    const Tensor& queries = q ? *q : *query_codes;
    STD_TORCH_CHECK(queries.dim() == 4 && key_codes.dim() == 4 && key_codes.size(1) > 0 &&
                        queries.size(1) % key_codes.size(1) == 0 && queries.size(0) == key_codes.size(0),
                    "longspan::", op, ": queries must be [B,H,T,.] and key_codes [B,K,S,W], K a divisor of H");
    tokens = {queries.size(0), queries.size(1), key_codes.size(1), queries.size(2), key_codes.size(2)};
    if (q) io.q = view_of<4>(*q);
    io.selection = selection_of(key_codes, query_codes, codebook, q, tokens, subspaces, codewords, op);
    spec.pattern.kind = kernels::PatternKind::kSelected;
    spec.pattern.causal = causal;
    spec.pattern.window = narrowed(window, "window", op), spec.pattern.sinks = narrowed(sinks, "sinks", op);
    spec.pattern.model_window = narrowed(model_window, "model_window", op);
    spec.queries = layout_of(q_layout, tokens.B, tokens.T, op), spec.keys = layout_of(k_layout, tokens.B, tokens.S, op);
    STD_TORCH_CHECK(q_layout.has_value() == k_layout.has_value() && (q_layout || tokens.T == tokens.S), "longspan::", op,
                    ": as many queries as keys, or layouts of both, are needed");
    spec.B = tokens.B, spec.H = tokens.H, spec.K = tokens.K, spec.T = tokens.T, spec.S = tokens.S;
  }
};

template <class Device>
std::tuple<Tensor, Tensor, Tensor> topl_threshold(MaybeTensor q, MaybeTensor query_codes, const Tensor& key_codes,
                                                  MaybeTensor codebook, MaybeTensor q_layout, MaybeTensor k_layout,
                                                  int64_t budget, int64_t subspaces, int64_t codewords, bool causal,
                                                  int64_t window, int64_t sinks, int64_t model_window) {
  Call call("topl_threshold", q, query_codes, key_codes, codebook, q_layout, k_layout, subspaces, codewords, causal, window,
            sinks, model_window);
  STD_TORCH_CHECK(budget >= 1, "longspan::topl_threshold: budget must be positive");
  call.spec.budget = budget;
  const auto rows = [&](ScalarType type) {
    return torch::stable::new_empty(key_codes, {call.tokens.B, call.tokens.H, call.tokens.T}, type);
  };
  const bool match = call.io.selection.scorer == kernels::Scorer::kMatch;
  Tensor threshold = rows(match ? ScalarType::Char : ScalarType::Short), cut = rows(ScalarType::Int),
         kept = rows(ScalarType::Int);
  typename Device::Context context(key_codes);
  Device::threshold(call.spec, call.io,
                    kernels::ToplThreshold{threshold.mutable_data_ptr(), static_cast<int32_t*>(cut.mutable_data_ptr()),
                                           static_cast<int32_t*>(kept.mutable_data_ptr())},
                    context.context());
  return {threshold, cut, kept};
}

template <class Device>
Tensor topl_indices(MaybeTensor q, MaybeTensor query_codes, const Tensor& key_codes, MaybeTensor codebook,
                    const Tensor& threshold, const Tensor& cut, MaybeTensor q_layout, MaybeTensor k_layout, int64_t slots,
                    int64_t subspaces, int64_t codewords, bool causal, int64_t window, int64_t sinks, int64_t model_window) {
  Call call("topl_indices", q, query_codes, key_codes, codebook, q_layout, k_layout, subspaces, codewords, causal, window,
            sinks, model_window);
  set_threshold(call.io.selection, threshold, cut, call.tokens, call.op);
  STD_TORCH_CHECK(slots >= 0, "longspan::topl_indices: slots must not be negative");
  Tensor indices =
      torch::stable::new_empty(key_codes, {call.tokens.B, call.tokens.H, call.tokens.T, slots}, ScalarType::Int);
  typename Device::Context context(key_codes);
  Device::indices(call.spec, call.io, slots, static_cast<int32_t*>(indices.mutable_data_ptr()), context.context());
  return indices;
}

template <class Device>
Tensor adc_table(const Tensor& q, const Tensor& codebook) {
  kernels::ToplTensors io;
  io.q = view_of<4>(q);
  io.selection.scorer = kernels::Scorer::kAdc;
  kernels::Codebook& book = io.selection.codebook = codebook_of(codebook, q, "adc_table");
  STD_TORCH_CHECK(q.size(1) > 0 && q.size(1) % book.groups == 0 && book.subspaces * book.width >= q.size(3) &&
                      (book.subspaces - 1) * book.width < q.size(3),
                  "longspan::adc_table: the codebook does not fit the heads and D of q");
  kernels::ToplSpec spec{};
  spec.B = q.size(0), spec.H = q.size(1), spec.T = q.size(2);
  Tensor tables = torch::stable::new_empty(
      q, {spec.B, spec.H, spec.T, book.subspaces, int64_t(1) << kernels::code_bits(book.codewords)}, ScalarType::Byte);
  typename Device::Context context(q);
  Device::table(spec, io, static_cast<uint8_t*>(tables.mutable_data_ptr()), context.context());
  return tables;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(longspan, CPU, m) {
  m.impl("topl_threshold", TORCH_BOX(&topl_threshold<Cpu>));
  m.impl("topl_indices", TORCH_BOX(&topl_indices<Cpu>));
  m.impl("adc_table", TORCH_BOX(&adc_table<Cpu>));
}

#ifdef LONGSPAN_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(longspan, CUDA, m) {
  m.impl("topl_threshold", TORCH_BOX(&topl_threshold<Cuda>));
  m.impl("topl_indices", TORCH_BOX(&topl_indices<Cuda>));
  m.impl("adc_table", TORCH_BOX(&adc_table<Cuda>));
}
#endif

}  // namespace longspan::ops
