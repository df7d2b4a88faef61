// Calls of sparse attention and of routed blocks; see sparse_launches.h.
#include "sparse_launches.h"

#include "grouped/grouped.h"
#include "list_attention/list_attention.h"
#include "pq/pq.h"
#include "topl/topl.h"

namespace longspan::kernels {
namespace {

constexpr int64_t kTokens = 4096, kHeads = 32, kKeyHeads = 8, kD = 128, kList = 512;

int32_t* numbers() { return reinterpret_cast<int32_t*>(scratch); }

void pq(const std::string& what, DType dtype) {
  const View<4> z = view(dtype, 1, kKeyHeads, kTokens, kD, true);
  const Codebook codebook = selection_of_codes().codebook;
  if (what == "encode1" || what == "encode2")
    pq_encode_cuda(codebook, what == "encode1" ? 1 : 2, {z, numbers()}, context());
  else if (what == "loss")
    pq_loss_cuda(codebook, 2, 1e-6, 1.0, {z, z, numbers(), scratch, scratch}, context());
  else if (what == "stats")
    pq_stats_cuda(codebook, {z, numbers(), scratch, numbers()}, context());
  else
    throw std::invalid_argument("pq has no " + what);
}

void topl(const std::string& what, DType dtype) {
  ToplSpec spec{{}, {}, {}, kTokens / 8, 1, kHeads, kKeyHeads, kTokens, kTokens};
  spec.pattern.kind = PatternKind::kSelected;
  const ToplTensors io{view(dtype, 1, kHeads, kTokens, kD, true), selection_of_codes()};
  if (what == "threshold")
    topl_threshold_cuda(spec, io, {scratch, numbers(), numbers()}, context());
  else if (what == "indices")
    topl_indices_cuda(spec, io, spec.budget, numbers(), context());
  else if (what == "tables")
    adc_table_cuda(spec, io, reinterpret_cast<uint8_t*>(scratch), context());
  else
    throw std::invalid_argument("topl has no " + what);
}

void list_attention(const std::string& what, DType dtype) {
  const View<4> q = view(dtype, 1, kHeads, kTokens, kD, true), k = view(dtype, 1, kKeyHeads, kTokens, kD, true);
  const KeyLists lists{numbers(), kList, numbers(), numbers()};
  const ListAttentionTensors io{q, k, k, q, scratch};
  if (what == "fwd")
    list_attention_fwd_cuda(lists, 1.0, 0.0, io, context());
  else if (what == "bwd")
    list_attention_bwd_cuda(lists, 1.0, 0.0, io, {q, q, k, k, nullptr}, context());
  else if (what == "transpose")
    list_transpose_cuda({kHeads, kTokens, kList, kTokens}, numbers(), numbers(), numbers(), context());
  else
    throw std::invalid_argument("list_attention has no " + what);
}

void grouped(const std::string& what, DType dtype, bool by_rows) {
  constexpr int64_t kC = 4096, kF = 8192, kRank = 16;
  const auto rows = [](DType of, int64_t n, int64_t columns) { return View<2>{scratch, of, {n, columns}, {columns, 1}}; };
  const auto stored = [&](DType of, int64_t columns, bool units_by_rows) {
    return units_by_rows ? rows(of, kF, columns) : rows(of, columns, kF);
  };
  const BlockSets sets{4, 2, numbers()};
  const BlockSide side = by_rows ? BlockSide::kRows : BlockSide::kColumns;
  const View<2> x = rows(dtype, kTokens, kC), hidden = rows(dtype, kTokens, kF / 2), w = stored(dtype, kC, by_rows);
  const View<2> p = rows(DType::kFloat32, kTokens, kRank);
  if (what == "expand")
    grouped_expand_cuda(sets, side, {x, w, hidden, scratch, {p, stored(DType::kFloat32, kRank, by_rows), kRank}}, context());
  else if (what == "reduce")
    grouped_reduce_cuda(
        sets, side,
        {hidden, w, x, scratch, {p, by_rows ? rows(DType::kFloat32, kRank, kC) : rows(DType::kFloat32, kC, kRank), kRank}},
        context());
  else if (what == "weight")
    grouped_weight_cuda(sets, side, {hidden, x, w}, context());
  else
    throw std::invalid_argument("grouped has no " + what);
}

}  // namespace

bool sparse_launch(const std::string& op, std::istream& words) {
  if (op != "pq" && op != "topl" && op != "list_attention" && op != "grouped") return false;
  std::string what, dtype;
  bool by_rows = true;
  if (!(words >> what >> dtype) || (op == "grouped" && !(words >> by_rows)))
    throw std::invalid_argument(op + " takes what, dtype" + (op == "grouped" ? " and the side of the blocks" : ""));
  if (op == "pq") pq(what, dtype_of(dtype));
  if (op == "topl") topl(what, dtype_of(dtype));
  if (op == "list_attention") list_attention(what, dtype_of(dtype));
  if (op == "grouped") grouped(what, dtype_of(dtype), by_rows);
  return true;
}

}  // namespace longspan::kernels
