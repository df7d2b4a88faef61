// Segmented linear cross-entropy on CUDA; see loss.h for the contract.
#include <stdexcept>

#include "common/convert.cuh"
#include "loss/loss.h"

namespace longspan::kernels {
namespace {

constexpr int kThreads = 256;

SIMT_DEVICE int64_t first_index() { return int64_t(blockIdx.x) * kThreads + threadIdx.x; }
SIMT_DEVICE int64_t index_step() { return int64_t(gridDim.x) * kThreads; }

/// sums[i] += part[i]
__global__ void __launch_bounds__(kThreads) add_kernel(float* sums, const float* part, int64_t count) {
  for (int64_t i = first_index(); i < count; i += index_step()) sums[i] += part[i];
}

/// to [rows, columns] with a row stride, from packed floats; zeros where `from` is null.
template <class S>
__global__ void __launch_bounds__(kThreads)
    store_kernel(const float* from, S* to, int64_t rows, int64_t columns, int64_t stride) {
  for (int64_t i = first_index(); i < rows * columns; i += index_step())
    store(to + i / columns * stride + i % columns, from ? from[i] : 0.f);
}

/// sums[v] = (first ? 0 : sums[v]) + sum over rows of x[row, v], one thread a column; neighbours read neighbours.
template <class S>
__global__ void __launch_bounds__(kThreads)
    column_sum_kernel(const S* x, int64_t rows, int64_t columns, int64_t stride, float* sums, bool first) {
  const int64_t v = first_index();
  if (v >= columns) return;
  float sum = first ? 0.f : sums[v];
  for (int64_t i = 0; i < rows; ++i) sum += to_float(x[i * stride + v]);
  sums[v] = sum;
}

/// total = sum of x in double, by one block in a fixed order.
__global__ void __launch_bounds__(kThreads) total_kernel(const float* x, int64_t count, float* total) {
  SIMT_SHARED(double[kThreads], parts);
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += double(x[i]);
  parts[threadIdx.x] = sum;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (!simt::mutant(46)) __syncthreads();
    if (int(threadIdx.x) < half) parts[threadIdx.x] += parts[threadIdx.x + half];
  }
  if (threadIdx.x == 0) *total = float(parts[0]);
}

dim3 grid_of(int64_t elements) {
  constexpr int64_t kMostBlocks = 1 << 16;  // enough for every GPU; threads stride over the rest
  const int64_t blocks = ceil_div(elements, kThreads);
  return dim3(unsigned(blocks < kMostBlocks ? blocks : kMostBlocks));
}

/// One call on one stream, for hidden, weight and bias of type S.
template <class S>
class Loss {
 public:
  Loss(const LinearCrossEntropySpec& spec, const LinearCrossEntropyTensors& io, const CudaContext& context)
      : spec_(spec), io_(io), context_(context), stream_(static_cast<cudaStream_t>(context.stream)) {}

  void run() {
    const int64_t segments = T_ ? ceil_div(T_, spec_.segment) : 0, longest = segments ? ceil_div(T_, segments) : 0;
    gradient_wanted_ = io_.dhidden.data || io_.dweight.data || io_.dbias;
    logits_ = scratch<float>(longest * stride_);
    dlogits_ = !gradient_wanted_ ? nullptr : kFloat ? reinterpret_cast<S*>(logits_) : scratch<S>(longest * stride_);
    losses_ = io_.losses ? static_cast<float*>(io_.losses) : scratch<float>(T_);
    sums_in_place_ = segments == 1 || (kFloat && io_.dweight.stride[0] == C_);
    dweight_ = sums_in_place_ || !io_.dweight.data ? nullptr : scratch<float>(V_ * C_);
    part_ = segments > 1 && io_.dweight.data ? scratch<float>(V_ * C_) : nullptr;
    dbias_ = io_.dbias ? scratch<float>(V_) : nullptr;
    for (int64_t first = 0; first < T_; first += longest) run_segment(first, longest < T_ - first ? longest : T_ - first);
    if (io_.dweight.data && (segments == 0 || dweight_)) store_rounded(dweight_, io_.dweight);
    if (io_.dbias) store_rounded(T_ ? dbias_ : nullptr, {io_.dbias, kDType, {1, V_}, {V_, 1}});
    if (io_.total) launch(total_kernel, dim3(1), static_cast<const float*>(losses_), T_, static_cast<float*>(io_.total));
  }

 private:
  static constexpr bool kFloat = sizeof(S) == 4;
  static constexpr DType kDType = kFloat ? DType::kFloat32 : DType::kBFloat16;

  template <class T>
  T* scratch(int64_t count) const {
    return count ? static_cast<T*>(context_.workspace.get(context_.workspace.self, count * int64_t(sizeof(T)))) : nullptr;
  }
  template <class Kernel, class... Arguments>
  void launch(Kernel kernel, dim3 grid, Arguments... arguments) const {
    simt::check(simt::launch(kernel, grid, dim3(kThreads), 0, stream_, arguments...), "linear_cross_entropy");
  }
  void multiply(const GemmArgs& args) const { context_.gemm.run(context_.gemm.self, args); }
  S* row_of(const View<2>& x, int64_t row) const { return static_cast<S*>(x.data) + row * x.stride[0]; }

  void run_segment(int64_t first, int64_t rows) {
    const View<2>&h = io_.hidden, &w = io_.weight;
    multiply({false, true, rows, V_, C_, row_of(h, first), h.stride[0], w.data, w.stride[0], 0, logits_, stride_, kDType,
              kDType, DType::kFloat32});
    const auto* row_weights = static_cast<const float*>(io_.row_weights);
    cross_entropy_rows_cuda({kDType, logits_, rows, V_, stride_, dlogits_, stride_, nullptr, io_.labels + first,
                             row_weights ? row_weights + first : nullptr, io_.bias, spec_.ignore_index,
                             float(spec_.logit_scale), float(spec_.logit_softcap), losses_ + first},
                            context_);
    if (io_.dhidden.data)
      multiply({false, false, rows, C_, V_, dlogits_, stride_, w.data, w.stride[0], 0, row_of(io_.dhidden, first),
                io_.dhidden.stride[0], kDType, kDType, kDType});
    if (io_.dweight.data) add_to_dweight(first, rows);
    if (io_.dbias)
      launch(column_sum_kernel<S>, dim3(unsigned(ceil_div(V_, kThreads))), static_cast<const S*>(dlogits_), rows, V_,
             stride_, dbias_, first == 0);
  }

  /// dweight = dlogits^T hidden, in float over segments: the first into the sums, the others beside them and added.
  void add_to_dweight(int64_t first, int64_t rows) {
    const bool packed = first > 0 || !sums_in_place_;  // else into dweight itself, whatever its row stride
    void* to = first > 0 ? part_ : dweight_ ? dweight_ : io_.dweight.data;
    multiply({true, false, V_, C_, rows, dlogits_, stride_, row_of(io_.hidden, first), io_.hidden.stride[0], 0, to,
              packed ? C_ : io_.dweight.stride[0], kDType, kDType, packed ? DType::kFloat32 : kDType});
    if (first == 0) return;
    auto* sums = dweight_ ? dweight_ : static_cast<float*>(io_.dweight.data);
    launch(add_kernel, grid_of(V_ * C_), sums, static_cast<const float*>(part_), V_ * C_);
  }

  void store_rounded(const float* from, const View<2>& to) const {
    launch(store_kernel<S>, grid_of(to.size[0] * to.size[1]), from, static_cast<S*>(to.data), to.size[0], to.size[1],
           to.stride[0]);
  }

  const LinearCrossEntropySpec& spec_;
  const LinearCrossEntropyTensors& io_;
  const CudaContext& context_;
  cudaStream_t stream_;
  const int64_t T_ = io_.hidden.size[0], C_ = io_.hidden.size[1], V_ = io_.weight.size[0];
  const int64_t stride_ = round_up(V_, 8);  // rows of 16-bit gradients start on 16 bytes
  bool gradient_wanted_ = false, sums_in_place_ = false;
  float *logits_ = nullptr, *losses_ = nullptr, *dweight_ = nullptr, *part_ = nullptr, *dbias_ = nullptr;
  S* dlogits_ = nullptr;
};

}  // namespace

void linear_cross_entropy_cuda(const LinearCrossEntropySpec& spec, const LinearCrossEntropyTensors& io,
                               const CudaContext& context) {
  if (io.hidden.dtype == DType::kFloat32) return Loss<float>(spec, io, context).run();
  if (io.hidden.dtype == DType::kBFloat16) return Loss<__nv_bfloat16>(spec, io, context).run();
  throw std::invalid_argument("the loss on CUDA takes float32 and bfloat16; float16 would underflow in the gradients");
}

}  // namespace longspan::kernels
