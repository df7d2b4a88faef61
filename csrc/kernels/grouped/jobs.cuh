#pragma once
// What one thread block of a grouped product does: which rows and columns of which set or block, and which pairs of factors
// it adds up. Both kernels (tensor cores and FMA) walk these.
#include "common/simt.h"
#include "grouped/grouped.h"

namespace longspan::kernels {

enum class GroupedKind : int8_t { kExpand, kReduce, kWeight };

/// The parameter of the kernels: GroupedExpand, GroupedReduce or GroupedWeight with pointers and strides in elements.
struct GroupedArguments {
  BlockSets sets;
  GroupedKind kind;
  bool by_rows;              // how W is stored
  const void *x, *w, *bias;  // rows [n, .]; W, or for kWeight the other rows b
  const void *p, *q;         // of the tail, in the dtype of the factors; null for none
  void* out;                 // y, or dW
  int64_t ldx, ldw, ldp, ldq, ldo;
  int64_t n, width, other, rank;            // rows; of a block; C of expand and weight, N of reduce; of the tail, padded
  bool aligned, tail_aligned, pairs, wide;  // wide: dW in float
};

/// One thread block's part of a result: [m, n] with its first element at `out`.
struct GroupedPlace {
  int64_t m = 0, n = 0, m0 = 0, n0 = 0;
  int set = 0, slot = 0, block = 0;  // of kWeight only `block`
  int64_t row = 0;                   // first row of the set
};

/// A pair of factors: op(A) [m, k] and op(B) [k, n].
struct GroupedPart {
  const void *a, *b;
  int64_t lda, ldb, k;
  bool aligned;
};

/// Element (i, j) of rows `ld` apart, of elements of `bytes`.
SIMT_DEVICE const void* element(const void* data, int64_t i, int64_t ld, int64_t j, int bytes) {
  return static_cast<const char*>(data) + (i * ld + j) * bytes;
}

/// Tiles of rows of all sets, at most.
inline int64_t grouped_row_tiles(const GroupedArguments& a, int64_t rows) { return a.n / rows + a.sets.count(); }

/// How many thread blocks a launch has.
inline int64_t grouped_blocks(const GroupedArguments& a, int64_t rows, int64_t columns) {
  switch (a.kind) {
    case GroupedKind::kExpand: return grouped_row_tiles(a, rows) * a.sets.active * ceil_div(a.width, columns);
    case GroupedKind::kReduce: return grouped_row_tiles(a, rows) * ceil_div(a.other, columns);
    case GroupedKind::kWeight:
      return a.sets.blocks * (a.by_rows ? ceil_div(a.width, rows) * ceil_div(a.other, columns)
                                        : ceil_div(a.other, rows) * ceil_div(a.width, columns));
  }
  return 0;
}

/// Where thread block `index` works, with tiles of `rows` x `columns`; false if there is nothing for it.
SIMT_DEVICE bool grouped_place(const GroupedArguments& a, int64_t index, int rows, int columns, GroupedPlace& at) {
  if (a.kind == GroupedKind::kWeight) {
    at.m = a.by_rows ? a.width : a.other, at.n = a.by_rows ? a.other : a.width;
    const int64_t tiles_n = ceil_div(at.n, columns), tiles = ceil_div(at.m, rows) * tiles_n;
    at.block = int(index / tiles);
    at.m0 = index % tiles / tiles_n * rows, at.n0 = index % tiles_n * columns;
    return true;
  }
  at.n = a.kind == GroupedKind::kExpand ? a.width : a.other;
  const int64_t tiles_n = ceil_div(at.n, columns), slots = a.kind == GroupedKind::kExpand ? a.sets.active : 1;
  at.n0 = index % tiles_n * columns, at.slot = int(index / tiles_n % slots);
  int64_t tile = index / tiles_n / slots;
  for (at.set = 0; at.set < a.sets.count(); ++at.set) {
    at.row = a.sets.offsets[at.set], at.m = a.sets.offsets[at.set + 1] - at.row;
    const int64_t tiles = ceil_div(at.m, rows);
    if (tile < tiles) break;
    tile -= tiles;
  }
  at.m0 = tile * rows;
  at.block = at.set < a.sets.count() ? a.sets.block(at.set, at.slot) : 0;
  return at.set < a.sets.count();
}

/// The next pair of factors; `cursor` starts at 0. False behind the last. Elements have `bytes` bytes.
SIMT_DEVICE bool grouped_part(const GroupedArguments& a, const GroupedPlace& at, int& cursor, int bytes, GroupedPart& part) {
  const int number = cursor++;
  if (a.kind == GroupedKind::kWeight) {
    for (int set = number; set < a.sets.count(); ++set) {
      const int64_t first = a.sets.offsets[set], rows = a.sets.offsets[set + 1] - first;
      for (int slot = 0; rows > 0 && slot < a.sets.active; ++slot) {
        if (a.sets.block(set, slot) != at.block) continue;
        cursor = set + 1;
        const void* slots = element(a.x, first, a.ldx, slot * a.width, bytes);
        const void* others = element(a.w, first, a.ldw, 0, bytes);
        part = a.by_rows ? GroupedPart{slots, others, a.ldx, a.ldw, rows, a.aligned}
                         : GroupedPart{others, slots, a.ldw, a.ldx, rows, a.aligned};
        return true;
      }
    }
    return false;
  }
  const bool expand = a.kind == GroupedKind::kExpand;
  const int products = expand ? 1 : a.sets.active;
  if (number < products) {
    const int slot = expand ? at.slot : number, block = a.sets.block(at.set, simt::mutant(230) ? 0 : slot);
    part.a = element(a.x, at.row, a.ldx, expand ? 0 : slot * a.width, bytes), part.lda = a.ldx;
    part.b = a.by_rows ? element(a.w, block * a.width, a.ldw, 0, bytes) : element(a.w, 0, a.ldw, block * a.width, bytes);
    part.ldb = a.ldw, part.k = expand ? a.other : a.width, part.aligned = a.aligned;
    return true;
  }
  if (number > products || !a.p || simt::mutant(231)) return false;
  part.a = element(a.p, at.row, a.ldp, 0, bytes), part.lda = a.ldp;
  part.b = !expand     ? a.q
           : a.by_rows ? element(a.q, at.block * a.width, a.ldq, 0, bytes)
                       : element(a.q, 0, a.ldq, at.block * a.width, bytes);
  part.ldb = a.ldq, part.k = a.rank, part.aligned = a.tail_aligned;
  return true;
}

/// Where element (i, j) of the place's result is, in elements from `out`.
SIMT_DEVICE int64_t grouped_out(const GroupedArguments& a, const GroupedPlace& at, int64_t i, int64_t j) {
  if (a.kind != GroupedKind::kWeight) return (at.row + i) * a.ldo + at.slot * a.width + j;
  return a.by_rows ? (at.block * a.width + i) * a.ldo + j : i * a.ldo + at.block * a.width + j;
}
/// The bias of column j.
SIMT_DEVICE int64_t grouped_bias(const GroupedArguments& a, const GroupedPlace& at, int64_t j) {
  return a.kind == GroupedKind::kExpand ? at.block * a.width + j : j;
}

/// The products, for 16-bit types on tensor cores and for float by FMA.
void grouped_product_16(DType dtype, const GroupedArguments& args, cudaStream_t stream);
void grouped_product_f32(const GroupedArguments& args, cudaStream_t stream);

}  // namespace longspan::kernels
