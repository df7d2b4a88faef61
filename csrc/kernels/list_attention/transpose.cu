// Transposed lists on CUDA; see list_attention.h. Numbers of one list differ, so the threads of a block that share out a
// list's slots never meet at one key, and lists are taken in order: what is written does not depend on the schedule.
#include <climits>
#include <stdexcept>

#include "common/simt.h"
#include "list_attention/list_attention.h"

namespace longspan::kernels {
namespace {

constexpr int kThreads = 256;

struct TransposeArguments {
  const int32_t* indices;
  int32_t *starts, *rows;
  int T, L, S;
};

/// How many lists have each key: starts[key + 1], a block a row of lists.
__global__ void __launch_bounds__(kThreads) list_count_kernel(const TransposeArguments a) {
  const int32_t* from = a.indices + int64_t(blockIdx.x) * a.T * a.L;
  int32_t* start = a.starts + int64_t(blockIdx.x) * (a.S + 1);
  for (int j = int(threadIdx.x); j <= a.S; j += kThreads) start[j] = 0;
  if (!simt::mutant(225)) __syncthreads();
  for (int64_t i = threadIdx.x; i < int64_t(a.T) * a.L; i += kThreads)
    if (from[i] >= 0) atomicAdd(start + from[i] + 1, 1);
}

/// Counts to sums, a block a row of lists: each thread adds up a run of keys, then the runs.
__global__ void __launch_bounds__(kThreads) list_sum_kernel(const TransposeArguments a) {
  SIMT_SHARED(int32_t[kThreads], totals);
  int32_t* start = a.starts + int64_t(blockIdx.x) * (a.S + 1);
  const int thread = int(threadIdx.x), run = int(ceil_div(a.S + 1, kThreads));
  const int begin = min(thread * run, a.S + 1), end = min(begin + run, a.S + 1);
  int32_t total = 0;
  for (int j = begin; j < end; ++j) total += start[j];
  totals[thread] = total;
  if (!simt::mutant(226)) __syncthreads();
  int32_t before = 0;
  for (int i = 0; i < thread; ++i) before += totals[i];
  for (int j = begin; j < end; ++j) before += start[j], start[j] = before;
}

/// Fills the keys [first, first + kThreads) of a row of lists: `next` is where the next query of each goes.
__global__ void __launch_bounds__(kThreads) list_fill_kernel(const TransposeArguments a) {
  SIMT_SHARED(int32_t[kThreads], next);
  const int first = int(blockIdx.y) * kThreads, thread = int(threadIdx.x);
  const int32_t* from = a.indices + int64_t(blockIdx.x) * a.T * a.L;
  const int32_t* start = a.starts + int64_t(blockIdx.x) * (a.S + 1);
  int32_t* to = a.rows + int64_t(blockIdx.x) * a.T * a.L;
  if (first + thread < a.S) next[thread] = start[first + thread];
  __syncthreads();
  for (int t = 0; t < a.T; ++t) {
    const int32_t* list = from + int64_t(t) * a.L;
    int low = 0, high = a.L;  // the first slot with a key from `first` on, or the end
    while (low < high) {
      const int middle = (low + high) / 2;
      if (list[middle] >= 0 && list[middle] < first)
        low = middle + 1;
      else
        high = middle;
    }
    const int slot = low + thread;  // keys differ, so a list has at most kThreads of these
    const int key = slot < a.L ? list[slot] : -1;
    if (key >= first && key < first + kThreads) to[next[key - first]++] = t;
    if (!simt::mutant(227)) __syncthreads();
  }
  if (blockIdx.y != 0) return;
  for (int64_t i = start[a.S] + thread; i < int64_t(a.T) * a.L; i += kThreads) to[i] = -1;
}

}  // namespace

void list_transpose_cuda(const ListShape& shape, const int32_t* indices, int32_t* starts, int32_t* rows,
                         const CudaContext& context) {
  if (shape.lists > 65535 || shape.T * shape.L > INT_MAX || shape.S > 65535LL * kThreads)
    throw std::invalid_argument(
        "list_transpose on CUDA takes at most 65535 rows of lists, fewer than 2^31 slots in each, and 2^24 keys");
  if (shape.lists == 0) return;
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const TransposeArguments args{indices, starts, rows, int(shape.T), int(shape.L), int(shape.S)};
  const dim3 each(unsigned(shape.lists)), block(kThreads);
  simt::check(simt::launch(list_count_kernel, each, block, 0, stream, args), "list_transpose");
  simt::check(simt::launch(list_sum_kernel, each, block, 0, stream, args), "list_transpose");
  const unsigned parts = unsigned(ceil_div(shape.S, kThreads));
  simt::check(simt::launch(list_fill_kernel, dim3(unsigned(shape.lists), parts > 0 ? parts : 1), block, 0, stream, args),
              "list_transpose");
}

}  // namespace longspan::kernels
