// The library's own matrix product; see gemm.h for the contract.
//
// C is cut into blocks, a block into rounds over k. A round packs one block of op(B), and of op(A) unless its rows can be
// read where they are, then multiplies tile by tile. All rounds are one list of tasks, in which the packing of a round
// stands in the middle of the tiles of the round before it: a task waits only for tasks that were claimed long before, and
// no thread ever stands at a barrier.
#include <atomic>
#include <thread>

#include "common/block_gemm.h"
#include "common/gemm.h"
#include "common/pack.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {
namespace {

inline constexpr int64_t kTileRows = 12 * kRegisterRows;  // what one task multiplies: a packed A part that stays in L2
inline constexpr int64_t kTileColumns = 512;
static_assert(4 + (ceil_div(kGemmRows, kTileRows) + 1) * (ceil_div(kGemmColumns, kTileColumns) + 1) <= kGemmCounters);

/// Cuts `length` into equal blocks of at most `longest`, rounded up to `step`.
int64_t block_length(int64_t length, int64_t longest, int64_t step) {
  return round_up(ceil_div(length, ceil_div(length, longest)), step);
}

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/// op(X) with its lines (rows of op(A), columns of op(B)) packed into panels of Width.
template <class T, int Width>
struct Packer {
  const void* data;
  int64_t stride;
  bool lines_are_rows;
  DType dtype;

  template <class S>
  void pack_as(int64_t line, int64_t count, int64_t k, int64_t depth, T* to) const {
    const S* x = static_cast<const S*>(data);
    if (lines_are_rows)
      pack_rows<T, Width>(x + line * stride + k, stride, count, depth, to);
    else
      pack_columns<T, Width>(x + k * stride + line, stride, count, depth, to);
  }

  void pack(int64_t line, int64_t count, int64_t k, int64_t depth, T* to) const {
    if constexpr (sizeof(T) == 4) {
      if (dtype == DType::kBFloat16) return pack_as<bfloat16>(line, count, k, depth, to);
    }
    pack_as<T>(line, count, k, depth, to);
  }
};

/// One [rows <= kRegisterRows, columns <= kPanel] block of C from a panel of B, and of a packed panel or of rows of A.
template <class T, bool PackedA>
inline void micro(int64_t rows, int64_t columns, int64_t depth, const T* a, int64_t lda, const T* b, T* c, int64_t ldc,
                  bool accumulate) {
  if (columns == kPanel<T>) return panel_product<T, kRegisterVecs, PackedA>(rows, depth, a, lda, b, c, ldc, accumulate);
  T edge[kRegisterRows * kPanel<T>];
  panel_product<T, kRegisterVecs, PackedA>(rows, depth, a, lda, b, edge, kPanel<T>, false);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j)
      c[i * ldc + j] = accumulate ? c[i * ldc + j] + edge[i * kPanel<T> + j] : edge[i * kPanel<T> + j];
}

/// to = beta * from; from is not read when beta is 0.
template <class T, class S>
void scale_rows(const S* from, int64_t ld_from, double beta, int64_t rows, int64_t columns, T* to, int64_t ld_to) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j)
      to[i * ld_to + j] = beta == 0 ? T(0) : load_as<T>(from + i * ld_from + j) * T(beta);
}

/// Counts finished tasks. Waiting yields the core: what is waited for is almost always done already.
class Progress {
 public:
  explicit Progress(int64_t* counter) : counter_(*counter) {}
  void clear() { counter_.store(0, std::memory_order_relaxed); }
  void add() { counter_.fetch_add(1, std::memory_order_release); }
  void wait_for(int64_t count) {
    while (counter_.load(std::memory_order_acquire) < count) std::this_thread::yield();
  }

 private:
  std::atomic_ref<int64_t> counter_;
};

/// The whole product as one list of tasks. T is the type of sums, S that of C; where they differ, a block of C is summed
/// in T and rounded once.
template <class T, class S>
struct Product {
  static constexpr bool kDirect = sizeof(S) == sizeof(T);
  const GemmArgs& g;
  const GemmTail& tail;
  const bool rows_in_place;                        // of A: a panel of some rows is read by broadcasts, which need no packing
  int64_t mb, nb, kb, blocks_m, blocks_k, rounds;  // lengths of blocks; a round is one block of m, n and k
  int64_t tile_n, tiles_m, tiles, packs_a, packs;  // tasks of one round: those of a short block are empty
  const Packer<T, kRegisterRows> pack_a;
  const Packer<T, kPanel<T>> pack_b;
  const Packer<T, kPanel<T>> pack_q;
  T *packed_a[2], *packed_b[2], *packed_q[2], *block_c;  // rounds alternate between two buffers
  int64_t* counters;                                     // [4] of the buffers, then one a tile

  Product(const GemmArgs& args, const GemmTail& further, char* scratch)
      : g(args),
        tail(further),
        rows_in_place(gemm_reads_a_in_place(args)),
        pack_a{g.a, g.lda, !g.transpose_a, g.dtype_a},
        pack_b{g.b, g.ldb, g.transpose_b, g.dtype_b},
        pack_q{tail.q, tail.ldq, g.transpose_b, statistics_dtype(g.dtype_a)} {
    mb = block_length(g.m, kGemmRows, kRegisterRows), nb = block_length(g.n, kGemmColumns, kPanel<T>);
    kb = g.k > 0 ? ceil_div(g.k, ceil_div(g.k, kGemmDepth)) : 0;
    blocks_m = ceil_div(g.m, mb), blocks_k = g.k > 0 ? ceil_div(g.k, kb) : 1;
    rounds = blocks_m * ceil_div(g.n, nb) * blocks_k;
    tile_n = block_length(nb, kTileColumns, kPanel<T>);
    tiles_m = ceil_div(mb, kTileRows), tiles = tiles_m * ceil_div(nb, tile_n);
    packs_a = rows_in_place ? 0 : tiles_m;
    packs = packs_a + ceil_div(nb, tile_n);
    const auto take = [&](int64_t bytes) {
      char* out = scratch;
      scratch += round_up(bytes, 64);
      return out;
    };
    counters = reinterpret_cast<int64_t*>(take((4 + tiles) * int64_t(sizeof(int64_t))));
    for (int buffer = 0; buffer < 2; ++buffer) {
      packed_a[buffer] = reinterpret_cast<T*>(take(rows_in_place ? 0 : mb * kb * int64_t(sizeof(T))));
      packed_b[buffer] = reinterpret_cast<T*>(take(nb * kb * int64_t(sizeof(T))));
      packed_q[buffer] = reinterpret_cast<T*>(take(nb * tail.rank * int64_t(sizeof(T))));
    }
    block_c = kDirect ? nullptr : reinterpret_cast<T*>(take(mb * nb * int64_t(sizeof(T))));
    for (int64_t i = 0; i < 4 + tiles; ++i) Progress(counters + i).clear();
  }

  Progress packed(int64_t round) const { return Progress(counters + round % 2); }
  Progress multiplied(int64_t round) const { return Progress(counters + 2 + round % 2); }

  struct Block {
    int64_t m0, n0, k0, m, n, depth;
  };
  Block block(int64_t round) const {
    const int64_t k0 = round % blocks_k * kb, m0 = round / blocks_k % blocks_m * mb, n0 = round / blocks_k / blocks_m * nb;
    return {m0, n0, k0, least(mb, g.m - m0), least(nb, g.n - n0), least(kb, g.k - k0)};
  }

  /// Whether the round is its block's last over k: then the tail is added, and a rounded C stored.
  bool last_of_k(int64_t round) const { return round % blocks_k + 1 == blocks_k; }

  int64_t tasks() const { return packs + rounds * (tiles + packs); }

  /// Task order: the packs of round 0; then of each round half its tiles, the packs of the next round, the other tiles.
  void run(int64_t index) const {
    if (index < packs) return pack(0, index);
    const int64_t round = (index - packs) / (tiles + packs), step = (index - packs) % (tiles + packs), half = tiles / 2;
    if (step < half) return multiply(round, step);
    if (step >= half + packs) return multiply(round, step - packs);
    if (round + 1 < rounds) pack(round + 1, step - half);
  }

  void pack(int64_t round, int64_t task) const {
    multiplied(round).wait_for(round / 2 * tiles);  // the buffer's earlier rounds
    const Block x = block(round);
    T *a = packed_a[round % 2], *b = packed_b[round % 2];
    if (task < packs_a) {
      for (int64_t i = task * kTileRows; i < least(x.m, (task + 1) * kTileRows); i += kRegisterRows)
        pack_a.pack(x.m0 + i, least(kRegisterRows, x.m - i), x.k0, x.depth, a + i * x.depth);
    } else {
      const int64_t first = (task - packs_a) * tile_n;
      for (int64_t j = first; j < least(x.n, first + tile_n); j += kPanel<T>) {
        const int64_t columns = least(kPanel<T>, x.n - j);
        pack_b.pack(x.n0 + j, columns, x.k0, x.depth, b + j * x.depth);
        if (tail.rank && last_of_k(round)) pack_q.pack(x.n0 + j, columns, 0, tail.rank, packed_q[round % 2] + j * tail.rank);
      }
    }
    packed(round).add();
  }

  void multiply(int64_t round, int64_t tile) const {
    Progress done(counters + 4 + tile);
    packed(round).wait_for((round / 2 + 1) * packs);
    done.wait_for(round);  // this tile of the round before: the same part of C, in the order of k
    const Block x = block(round);
    const int64_t i0 = tile % tiles_m * kTileRows, i1 = least(x.m, i0 + kTileRows);
    const int64_t j0 = tile / tiles_m * tile_n, j1 = least(x.n, j0 + tile_n);
    if (i0 < i1 && j0 < j1) multiply_tile(x, round, i0, i1, j0, j1);
    done.add();
    multiplied(round).add();
  }

  void multiply_tile(const Block& x, int64_t round, int64_t i0, int64_t i1, int64_t j0, int64_t j1) const {
    S* out = static_cast<S*>(g.c) + x.m0 * g.ldc + x.n0;
    T* c = kDirect ? reinterpret_cast<T*>(out) : block_c;
    const int64_t ldc = kDirect ? g.ldc : nb;
    const bool first = x.k0 == 0, scaled = first && (!kDirect || (g.beta != 0 && g.beta != 1));
    if (scaled) scale_rows<T, S>(out + i0 * g.ldc + j0, g.ldc, g.beta, i1 - i0, j1 - j0, c + i0 * ldc + j0, ldc);
    const bool accumulate = !first || g.beta != 0 || !kDirect;
    const T *a = packed_a[round % 2], *b = packed_b[round % 2];
    const T* rows = static_cast<const T*>(g.a) + x.m0 * g.lda + x.k0;
    for (int64_t j = j0; j < j1; j += kPanel<T>)
      for (int64_t i = i0; i < i1; i += kRegisterRows) {
        const int64_t m = least(kRegisterRows, i1 - i), n = least(kPanel<T>, j1 - j);
        T* to = c + i * ldc + j;
        if (rows_in_place)
          micro<T, false>(m, n, x.depth, rows + i * g.lda, g.lda, b + j * x.depth, to, ldc, accumulate);
        else
          micro<T, true>(m, n, x.depth, a + i * x.depth, kRegisterRows, b + j * x.depth, to, ldc, accumulate);
        if (tail.rank && last_of_k(round))
          micro<T, false>(m, n, tail.rank, static_cast<const T*>(tail.p) + (x.m0 + i) * tail.ldp, tail.ldp,
                          packed_q[round % 2] + j * tail.rank, to, ldc, true);
      }
    if constexpr (!kDirect) {
      if (!last_of_k(round)) return;
      for (int64_t i = i0; i < i1; ++i)
        for (int64_t j = j0; j < j1; ++j) store_as<T>(out + i * g.ldc + j, c[i * ldc + j]);
    }
  }
};

template <class T, class S>
void multiply(const GemmArgs& args, const GemmTail& tail, const Parallel& parallel, void* scratch) {
  const Product<T, S> product(args, tail, static_cast<char*>(scratch));
  const Context context{parallel, {}, {}, Isa::kBaseline};
  parallel_for(context, product.tasks(), [&](int64_t index, int) { product.run(index); });
}

}  // namespace

void gemm(const GemmArgs& args, const GemmTail& tail, const Parallel& parallel, void* scratch) {
  if (args.dtype_a == DType::kFloat64) return multiply<double, double>(args, tail, parallel, scratch);
  if (args.dtype_c == DType::kBFloat16) return multiply<float, bfloat16>(args, tail, parallel, scratch);
  multiply<float, float>(args, tail, parallel, scratch);
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
