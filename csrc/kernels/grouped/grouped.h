#pragma once
// Matrix products of rows that are grouped by the weight blocks that they meet: a routed feed-forward layer computes only
// those (SPT, arXiv 2312.10365).
#include "common/context.h"

namespace longspan::kernels {

inline constexpr int kMaxBlocks = 8;
inline constexpr int kMaxSets = 70;  // of 4 out of 8 blocks

/// Sets of `active` out of `blocks` blocks in the order of their sorted numbers, and which rows meet each: rows
/// offsets[s] .. offsets[s+1] meet the blocks of set s, one a slot.
struct BlockSets {
  int blocks = 1, active = 1;
  const int32_t* offsets = nullptr;  // [count + 1], in the memory of the rows

  /// How many sets there are.
  LONGSPAN_HD int count() const {
    int sets = 1;
    for (int i = 0; i < active; ++i) sets = sets * (blocks - i) / (i + 1);
    return sets;
  }
  /// The block of slot `slot` of set `set`.
  LONGSPAN_HD int block(int set, int slot) const {
    int first = 0;
    for (int left = active - 1;; --left) {
      for (;; ++first) {  // sets whose next block is `first`
        int here = 1;
        for (int i = 0; i < left; ++i) here = here * (blocks - 1 - first - i) / (i + 1);
        if (set < here) break;
        set -= here;
      }
      if (slot-- == 0) return first;
      ++first;
    }
  }
};

/// How a matrix W of blocks is stored: a block is some neighbouring rows, or columns, of it.
enum class BlockSide : int8_t { kRows, kColumns };

/// What is added before a product is rounded: p [n,R] op(q), with q by rows ([N,R] or [G*Nb,R]) or columns ([R,N] or
/// [R,G*Nb]) as W is. In the type of sums; rank 0 is none.
struct GroupedTail {
  View<2> p, q;
  int64_t rank = 0;
};

struct GroupedExpand {
  View<2> x, weight, y;
  const void* bias;
  GroupedTail tail;
};

/// Each slot's columns of y from all of x:
///
///   y[t, slot*Nb + j] = sum_c x[t,c] W_block(slot)[j,c] + bias[block*Nb + j] + sum_r p[t,r] q_block[j,r]
///
/// x [n,C], y [n, active*Nb] of dtype S. kRows: W [G*Nb,C], q [G*Nb,R]; kColumns: W [C,G*Nb], q [R,G*Nb]. bias [G*Nb] S or
/// null.
void grouped_expand_cpu(const BlockSets& sets, BlockSide side, const GroupedExpand& io, const Context& context);
void grouped_expand_cuda(const BlockSets& sets, BlockSide side, const GroupedExpand& io, const CudaContext& context);

struct GroupedReduce {
  View<2> x, weight, y;
  const void* bias;
  GroupedTail tail;
};

/// One sum over the columns of all slots:
///
///   y[t,j] = sum over slots, c of x[t, slot*Kb + c] W_block(slot)[j,c] + bias[j] + sum_r p[t,r] q[j,r]
///
/// x [n, active*Kb], y [n,N] of dtype S. kColumns: W [N,G*Kb], q [N,R]; kRows: W [G*Kb,N], q [R,N]. bias [N] S or null.
void grouped_reduce_cpu(const BlockSets& sets, BlockSide side, const GroupedReduce& io, const Context& context);
void grouped_reduce_cuda(const BlockSets& sets, BlockSide side, const GroupedReduce& io, const CudaContext& context);

struct GroupedWeight {
  View<2> a, b, dweight;
};

/// The gradient of W, over the rows that met each block: dW_block[j,c] = sum_t a[t, slot*Nb + j] b[t,c] (kRows: W [G*Nb,C]),
/// or its transpose (kColumns: W [C,G*Nb]).
///
/// a [n, active*Nb], b [n,C] of dtype S or both of the type of sums; dW of dtype S or of the type of sums. Blocks without
/// rows get 0.
void grouped_weight_cpu(const BlockSets& sets, BlockSide side, const GroupedWeight& io, const Context& context);
void grouped_weight_cuda(const BlockSets& sets, BlockSide side, const GroupedWeight& io, const CudaContext& context);

// On the CPU each set and slot is one product of gemm.h, whose order of sums depends on shapes alone; scratch is that of one
// of them, and float sums of dW where it is 16-bit. On CUDA a product is one launch for all sets, without any answer from
// the device.

}  // namespace longspan::kernels
