// Tables of scores on CUDA, a warp a query; see selection.h.
#include <climits>
#include <stdexcept>

#include "pq/score.cuh"
#include "pq/tables.h"

namespace longspan::kernels {
namespace {

constexpr int kWarps = 4;
constexpr int kBlockBytes = 48 * 1024;

template <class S>
__global__ void __launch_bounds__(32 * kWarps)
    score_tables_kernel(const DeviceSelection s, const DeviceVectors<const S> q, int H, int T, int64_t rows, int warps,
                        int warp_bytes, unsigned char* tables) {
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) & 31;
  const int64_t row = int64_t(blockIdx.x) * warps + warp;
  if (row >= rows) return;
  unsigned char* const memory = simt::dyn_smem<unsigned char>() + warp * warp_bytes;
  const int t = int(row % T), bh = int(row / T), bytes = s.book.M << s.book.bits;
  make_table(s, s.match ? nullptr : q.at(bh, t), q.D, bh % H, H, s.match ? s.query_codes + row * s.book.W : nullptr, memory);
  for (int i = lane; i < bytes; i += 32) tables[row * bytes + i] = memory[i];
}

}  // namespace

void score_tables_cuda(const Selection& selection, const View<4>& q, int64_t B, int64_t H, int64_t T, uint8_t* tables,
                       const CudaContext& context) {
  const int64_t rows = B * H * T;
  if (rows == 0) return;
  if (rows > INT_MAX) throw std::invalid_argument("score tables on CUDA take fewer than 2^31 queries over batch and heads");
  const DeviceSelection s(selection);
  const int bytes = int(table_scratch(s.book.M, s.book.E, s.book.bits, s.match));
  const int warps = bytes * kWarps <= kBlockBytes ? kWarps : 1;
  of_dtype(s.match ? DType::kFloat32 : q.dtype, [&]<class S>(S) {
    simt::check(simt::launch(score_tables_kernel<S>, dim3(unsigned(ceil_div(rows, warps))), dim3(32 * warps),
                             size_t(bytes) * warps, static_cast<cudaStream_t>(context.stream), s,
                             s.match ? DeviceVectors<const S>() : DeviceVectors<const S>(q), int(H), int(T), rows, warps,
                             bytes, tables),
                "score tables");
  });
}

}  // namespace longspan::kernels
