#pragma once
// Tiles of matrix products on tensor cores in shared memory, by CuTe's layouts; what the products of the families share.
#include <type_traits>

#include "common/cute_atoms.cuh"
#include "common/types.h"

namespace longspan::kernels {

using cute::_;
using cute::_0;
using cute::_1;
using cute::_128;
using cute::_16;
using cute::_2;
using cute::_3;
using cute::_32;
using cute::_64;
using cute::_8;
using cute::Int;
using cute::Layout;
using cute::Shape;
using cute::Stride;

/// C [M, N] of one block, the depth of a step, and steps that are in shared memory at a time.
template <int M, int N, int K, int Stages>
struct ProductShape {
  static constexpr int kM = M, kN = N, kK = K, kStages = Stages;
};
inline constexpr int kProductThreads = 128;  // 2 x 2 warps

/// One factor's tiles [MN, K, stages] in shared memory. 8 rows of a matrix of ldmatrix fall on 8 groups of banks.
template <int MN, int K, int Stages, bool Rows>
struct TileLayout {
  using Atom =
      std::conditional_t<Rows,
                         decltype(cute::composition(cute::Swizzle<2, 3, 3>{}, Layout<Shape<_8, _32>, Stride<_32, _1>>{})),
                         decltype(cute::composition(cute::Swizzle<3, 3, 3>{}, Layout<Shape<_64, _8>, Stride<_1, _64>>{}))>;
  using Type = decltype(cute::tile_to_shape(Atom{}, Shape<Int<MN>, Int<K>, Int<Stages>>{}));
  static_assert(K == 32 && MN % 64 == 0);
  static constexpr int kElements = MN * K * Stages;
  // Chunks of 16 bytes along the contiguous dimension, and how a thread's chunks step across the other.
  static constexpr int kChunks = (Rows ? K : MN) / 8, kStep = kProductThreads / kChunks, kSteps = (Rows ? MN : K) / kStep;

  /// Offset of a chunk of the first stage, and from one of a thread's lines to the next: the swizzle repeats before that.
  SIMT_DEVICE static int offset(int line, int chunk) {
    return Rows ? int(Type{}(line, chunk, 0)) : int(Type{}(chunk, line, 0));
  }
  static constexpr int kSharedStep = Rows ? Type{}(kStep, 0, 0) : Type{}(0, kStep, 0);

  /// Copies the tile at (mn, k) of a factor [count, depth]; zeros outside. Asynchronous where aligned.
  template <class T>
  SIMT_DEVICE static void load(T* shared, const T* data, int64_t ld, int64_t mn, int64_t k, int64_t count, int64_t depth,
                               bool aligned, int stage) {
    const int chunk = int(threadIdx.x) % kChunks * 8, line = int(threadIdx.x) / kChunks;
    const int64_t along = Rows ? k : mn, across = Rows ? mn : k;
    // From this thread's first element to the end; whole tiles have more than one of them.
    const int along_left = left(Rows ? depth - k : count - mn) - chunk;
    const int across_left = left(Rows ? count - mn : depth - k) - line;
    const T* source = data + (across + line) * ld + along + chunk;
    T* to = shared + stage * (MN * K) + offset(line, chunk);
    if (aligned) {
      const int bytes = along_left > 0 ? 16 : 0;
      SIMT_UNROLL
      for (int i = 0; i < kSteps; ++i)  // past the end nothing is read from the address, wherever it points
        ptx::cp_async16(to + i * kSharedStep, source + i * (kStep * ld),
                        across_left > i * kStep || simt::mutant(142) ? bytes : 0);
      return;
    }
    for (int i = 0; i < kSteps; ++i) {
      for (int e = 0; e < 8; ++e)
        to[i * kSharedStep + e] = e < along_left && across_left > i * kStep ? source[i * (kStep * ld) + e] : T(0.f);
    }
  }

 private:
  SIMT_DEVICE static int left(int64_t elements) { return int(elements < MN + K ? elements : MN + K); }
};

template <class S>
struct alignas(4) Pair {
  S at[2];
};

}  // namespace longspan::kernels
