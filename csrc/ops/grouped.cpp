// torch ops longspan::grouped_expand, grouped_reduce and grouped_weight: check, allocate, launch.
#include "kernels/grouped/grouped.h"

#include "ops/cuda.h"
#include "ops/tensor.h"

namespace longspan::ops {
namespace {

using kernels::BlockSide;

/// Where an op runs.
struct Cpu {
  using Context = TorchContext;
  template <class... Arguments>
  static void expand(const Arguments&... arguments) {
    kernels::grouped_expand_cpu(arguments...);
  }
  template <class... Arguments>
  static void reduce(const Arguments&... arguments) {
    kernels::grouped_reduce_cpu(arguments...);
  }
  template <class... Arguments>
  static void weight(const Arguments&... arguments) {
    kernels::grouped_weight_cpu(arguments...);
  }
};

#ifdef LONGSPAN_WITH_CUDA
struct Cuda {
  using Context = TorchCudaContext;
  template <class... Arguments>
  static void expand(const Arguments&... arguments) {
    kernels::grouped_expand_cuda(arguments...);
  }
  template <class... Arguments>
  static void reduce(const Arguments&... arguments) {
    kernels::grouped_reduce_cuda(arguments...);
  }
  template <class... Arguments>
  static void weight(const Arguments&... arguments) {
    kernels::grouped_weight_cuda(arguments...);
  }
};
#endif

using MaybeTensor = std::optional<Tensor>;

kernels::BlockSets sets_of(const Tensor& offsets, int64_t blocks, int64_t active) {
  STD_TORCH_CHECK(blocks >= 1 && blocks <= kernels::kMaxBlocks && active >= 1 && active <= blocks,
                  "longspan::grouped: 1 to 8 blocks, of which 1 or more are active");
  const kernels::BlockSets sets{int(blocks), int(active), static_cast<const int32_t*>(offsets.const_data_ptr())};
  STD_TORCH_CHECK(offsets.dim() == 1 && offsets.is_contiguous() && offsets.scalar_type() == ScalarType::Int &&
                      offsets.size(0) == sets.count() + 1,
                  "longspan::grouped: offsets must be contiguous int32, one more than there are sets");
  return sets;
}

BlockSide side_of(bool by_rows) { return by_rows ? BlockSide::kRows : BlockSide::kColumns; }

/// p [n,R] and q with `columns` rows, or columns unless `by_rows`.
kernels::GroupedTail tail_of(const MaybeTensor& p, const MaybeTensor& q, const Tensor& x, int64_t columns, bool by_rows) {
  STD_TORCH_CHECK(p.has_value() == q.has_value(), "longspan::grouped: both factors of a tail, or none");
  if (!p) return {};
  const kernels::GroupedTail tail{view_of<2>(*p), view_of<2>(*q), p->size(1)};
  STD_TORCH_CHECK(p->scalar_type() == statistics_type(x) && q->scalar_type() == statistics_type(x) &&
                      p->size(0) == x.size(0) && q->size(by_rows ? 1 : 0) == tail.rank &&
                      q->size(by_rows ? 0 : 1) == columns && tail.rank <= 256,
                  "longspan::grouped: the tail does not fit; ranks up to 256, in the type of sums");
  return tail;
}

const void* bias_of(const MaybeTensor& bias, const Tensor& x, int64_t columns) {
  if (!bias) return nullptr;
  STD_TORCH_CHECK(
      bias->dim() == 1 && bias->size(0) == columns && bias->is_contiguous() && bias->scalar_type() == x.scalar_type(),
      "longspan::grouped: bias does not fit");
  return bias->const_data_ptr();
}

template <class Device>
Tensor grouped_expand(const Tensor& x, const Tensor& weight, MaybeTensor bias, MaybeTensor tail_p, MaybeTensor tail_q,
                      const Tensor& offsets, int64_t blocks, int64_t active, bool by_rows) {
  const kernels::BlockSets sets = sets_of(offsets, blocks, active);
  const auto rows = view_of<2>(x), w = view_of<2>(weight);
  const int64_t columns = w.size[by_rows ? 0 : 1];
  STD_TORCH_CHECK(w.dtype == rows.dtype && w.size[by_rows ? 1 : 0] == rows.size[1] && columns % blocks == 0,
                  "longspan::grouped_expand: the weight does not fit x and the blocks");
  Tensor y = torch::stable::new_empty(x, {rows.size[0], columns / blocks * active});
  typename Device::Context context(x);
  Device::expand(sets, side_of(by_rows),
                 kernels::GroupedExpand{rows, w, view_of<2>(y), bias_of(bias, x, columns),
                                        tail_of(tail_p, tail_q, x, columns, by_rows)},
                 context.context());
  return y;
}

template <class Device>
Tensor grouped_reduce(const Tensor& x, const Tensor& weight, MaybeTensor bias, MaybeTensor tail_p, MaybeTensor tail_q,
                      const Tensor& offsets, int64_t blocks, int64_t active, bool by_rows) {
  const kernels::BlockSets sets = sets_of(offsets, blocks, active);
  const auto rows = view_of<2>(x), w = view_of<2>(weight);
  const int64_t N = w.size[by_rows ? 1 : 0];
  STD_TORCH_CHECK(
      w.dtype == rows.dtype && w.size[by_rows ? 0 : 1] * active == rows.size[1] * blocks && rows.size[1] % active == 0,
      "longspan::grouped_reduce: the weight does not fit x and the blocks");
  Tensor y = torch::stable::new_empty(x, {rows.size[0], N});
  typename Device::Context context(x);
  // q meets whole columns of y: stored by rows where W's columns are blocks.
  Device::reduce(
      sets, side_of(by_rows),
      kernels::GroupedReduce{rows, w, view_of<2>(y), bias_of(bias, x, N), tail_of(tail_p, tail_q, x, N, !by_rows)},
      context.context());
  return y;
}

template <class Device>
Tensor grouped_weight(const Tensor& a, const Tensor& b, const Tensor& offsets, int64_t blocks, int64_t active, bool by_rows,
                      bool wide) {
  const kernels::BlockSets sets = sets_of(offsets, blocks, active);
  const auto left = view_of<2>(a), right = view_of<2>(b);
  STD_TORCH_CHECK(left.dtype == right.dtype && left.size[0] == right.size[0] && left.size[1] % active == 0,
                  "longspan::grouped_weight: a and b do not fit");
  const int64_t columns = left.size[1] / active * blocks, C = right.size[1];
  Tensor dweight = torch::stable::new_empty(a, {by_rows ? columns : C, by_rows ? C : columns},
                                            wide ? statistics_type(a) : a.scalar_type());
  typename Device::Context context(a);
  Device::weight(sets, side_of(by_rows), kernels::GroupedWeight{left, right, view_of<2>(dweight)}, context.context());
  return dweight;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(longspan, CPU, m) {
  m.impl("grouped_expand", TORCH_BOX(&grouped_expand<Cpu>));
  m.impl("grouped_reduce", TORCH_BOX(&grouped_reduce<Cpu>));
  m.impl("grouped_weight", TORCH_BOX(&grouped_weight<Cpu>));
}

#ifdef LONGSPAN_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(longspan, CUDA, m) {
  m.impl("grouped_expand", TORCH_BOX(&grouped_expand<Cuda>));
  m.impl("grouped_reduce", TORCH_BOX(&grouped_reduce<Cuda>));
  m.impl("grouped_weight", TORCH_BOX(&grouped_weight<Cuda>));
}
#endif

}  // namespace longspan::ops
