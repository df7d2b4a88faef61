// The CUDA entry points of grouped products: from views to the kernels' parameter; see grouped.h.
#include <climits>
#include <stdexcept>
#include <string>

#include "grouped/jobs.cuh"
#include "lora/launch.h"

namespace longspan::kernels {
namespace {

bool aligned(const View<2>& x) {
  const int64_t unit = 16 / element_size(x.dtype);
  return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.stride[0] % unit == 0 && x.size[1] % unit == 0;
}

GroupedArguments start(const char* name, const BlockSets& sets, BlockSide side, GroupedKind kind, const View<2>& x,
                       const View<2>& w, const View<2>& out) {
  if (x.dtype == DType::kFloat64)
    throw std::invalid_argument(std::string(name) + " on CUDA takes float32, float16 and bfloat16, not float64");
  if (x.size[0] > INT_MAX) throw std::invalid_argument(std::string(name) + " on CUDA takes fewer than 2^31 rows");
  GroupedArguments a{};
  a.sets = sets, a.kind = kind, a.by_rows = side == BlockSide::kRows;
  a.x = x.data, a.ldx = x.stride[0], a.w = w.data, a.ldw = w.stride[0], a.out = out.data, a.ldo = out.stride[0];
  a.n = x.size[0];
  a.wide = out.dtype != x.dtype;
  a.pairs = reinterpret_cast<uintptr_t>(out.data) % 4 == 0 && out.stride[0] % 2 == 0;
  return a;
}

/// 16-bit factors are copied 16 bytes at a time where blocks and slots start on them.
void align(GroupedArguments& a, const View<2>& x, const View<2>& w) {
  const int64_t unit = 16 / element_size(x.dtype);
  a.aligned = aligned(x) && aligned(w) && a.width % unit == 0 && a.other % unit == 0;
  a.pairs = a.pairs && a.width % 2 == 0;
}

/// The tail in the dtype of the factors, its rank padded to whole steps of the tensor cores.
void set_tail(GroupedArguments& a, const GroupedTail& tail, bool by_rows, DType dtype, const CudaContext& context) {
  if (tail.rank == 0) return;
  a.p = tail.p.data, a.ldp = tail.p.stride[0], a.q = tail.q.data, a.ldq = tail.q.stride[0], a.rank = tail.rank;
  if (dtype == DType::kFloat32) return;
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const int64_t rank = round_up(tail.rank, kRankStep), columns = tail.q.size[by_rows ? 0 : 1];
  const auto packed = [&](const View<2>& from, int64_t rows, int64_t ld) {
    void* to = context.workspace.get(context.workspace.self, (rows * ld > 0 ? rows * ld : 1) * element_size(dtype));
    if (rows * ld > 0)
      pack(dtype, {from.data, from.dtype, from.size[0], from.size[1], from.stride[0], false, to, rows, ld}, stream);
    return to;
  };
  a.p = packed(tail.p, tail.p.size[0], rank), a.ldp = rank;
  a.ldq = by_rows ? rank : round_up(columns, 8);
  a.q = packed(tail.q, by_rows ? columns : rank, a.ldq);
  a.rank = rank;
  a.tail_aligned = by_rows || a.kind == GroupedKind::kReduce || a.width % 8 == 0;  // rows end in zeros
}

void multiply(const GroupedArguments& a, DType dtype, const CudaContext& context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  if (dtype == DType::kFloat32) return grouped_product_f32(a, stream);
  grouped_product_16(dtype, a, stream);
}

}  // namespace

void grouped_expand_cuda(const BlockSets& sets, BlockSide side, const GroupedExpand& io, const CudaContext& context) {
  GroupedArguments a = start("grouped_expand", sets, side, GroupedKind::kExpand, io.x, io.weight, io.y);
  if (a.n == 0) return;
  a.width = io.y.size[1] / sets.active, a.other = io.x.size[1], a.bias = io.bias;
  align(a, io.x, io.weight);
  set_tail(a, io.tail, a.by_rows, io.x.dtype, context);
  multiply(a, io.x.dtype, context);
}

void grouped_reduce_cuda(const BlockSets& sets, BlockSide side, const GroupedReduce& io, const CudaContext& context) {
  GroupedArguments a = start("grouped_reduce", sets, side, GroupedKind::kReduce, io.x, io.weight, io.y);
  if (a.n == 0) return;
  a.width = io.x.size[1] / sets.active, a.other = io.y.size[1], a.bias = io.bias;
  align(a, io.x, io.weight);
  set_tail(a, io.tail, !a.by_rows, io.x.dtype, context);
  multiply(a, io.x.dtype, context);
}

void grouped_weight_cuda(const BlockSets& sets, BlockSide side, const GroupedWeight& io, const CudaContext& context) {
  GroupedArguments a = start("grouped_weight", sets, side, GroupedKind::kWeight, io.a, io.b, io.dweight);
  a.width = io.a.size[1] / sets.active, a.other = io.b.size[1];
  align(a, io.a, io.b);
  multiply(a, io.a.dtype, context);
}

}  // namespace longspan::kernels
