// Nearest codewords on CUDA; see pq.h. A thread has one vector and the subspaces of one word of codes: all threads of a warp
// read the same codeword at the same time.
#include "pq/vectors.cuh"

namespace longspan::kernels {
namespace {

constexpr int kThreads = 128;

/// Operations that round by themselves: no multiply-add may join two of them.
template <int Power>
SIMT_DEVICE float farther(float distance, float z, float codeword) {
  const float x = __fsub_rn(z, codeword);
  return __fadd_rn(distance, Power == 1 ? fabsf(x) : __fmul_rn(x, x));
}

template <class S, int Power>
__global__ void __launch_bounds__(kThreads)
    pq_encode_kernel(const DeviceCodebook book, const DeviceVectors<const S> z, int32_t* codes) {
  const int t = int(blockIdx.x) * kThreads + int(threadIdx.x), bh = int(blockIdx.z), word = int(blockIdx.y);
  if (t >= z.T) return;
  const S* row = z.at(bh, t);
  const float* codewords = book.of_head(simt::mutant(170) ? 0 : bh % z.H, z.H);
  const int per_word = 32 / book.bits, last = min(book.M, (word + 1) * per_word);
  uint32_t packed = 0;
  for (int m = word * per_word; m < last; ++m) {
    const int first = m * book.d, width = simt::mutant(171) ? book.d : min(book.d, z.D - first);
    float best = 0;
    int number = 0;
    for (int e = 0; e < book.E; ++e) {
      const float* codeword = codewords + (int64_t(m) * book.E + e) * book.d;
      float distance = 0;
      for (int j = 0; j < width; ++j) distance = farther<Power>(distance, to_float(row[first + j]), codeword[j]);
      for (int j = width; j < book.d; ++j) distance = farther<Power>(distance, 0.f, codeword[j]);
      const bool less = simt::mutant(172) ? distance <= best : distance < best;
      if (e == 0 || less) best = distance, number = e;
    }
    packed |= uint32_t(number) << (m % per_word * book.bits);
  }
  codes[(int64_t(bh) * z.T + t) * book.W + word] = int32_t(packed);
}

}  // namespace

void pq_encode_cuda(const Codebook& codebook, int power, const PqTensors& io, const CudaContext& context) {
  check_vectors("pq_encode", io.z);
  const DeviceCodebook book(codebook);
  const int64_t heads = io.z.size[0] * io.z.size[1], rows = io.z.size[2];
  if (heads * rows == 0) return;
  const dim3 grid(unsigned(ceil_div(rows, kThreads)), unsigned(book.W), unsigned(heads));
  of_dtype(io.z.dtype, [&]<class S>(S) {
    const auto kernel = power == 1 ? pq_encode_kernel<S, 1> : pq_encode_kernel<S, 2>;
    simt::check(simt::launch(kernel, grid, dim3(kThreads), 0, static_cast<cudaStream_t>(context.stream), book,
                             DeviceVectors<const S>(io.z), io.codes),
                "pq_encode");
  });
}

}  // namespace longspan::kernels
