// torch ops longspan::pq_encode, pq_loss and pq_stats: check, allocate, launch.
#include "kernels/pq/pq.h"

#include <tuple>

#include "ops/cuda.h"
#include "ops/layout.h"

namespace longspan::ops {
namespace {

/// Where an op runs.
struct Cpu {
  using Context = TorchContext;
  template <class... Arguments>
  static void encode(const Arguments&... arguments) {
    kernels::pq_encode_cpu(arguments...);
  }
  template <class... Arguments>
  static void loss(const Arguments&... arguments) {
    kernels::pq_loss_cpu(arguments...);
  }
  template <class... Arguments>
  static void stats(const Arguments&... arguments) {
    kernels::pq_stats_cpu(arguments...);
  }
};

#ifdef LONGSPAN_WITH_CUDA
struct Cuda {
  using Context = TorchCudaContext;
  template <class... Arguments>
  static void encode(const Arguments&... arguments) {
    kernels::pq_encode_cuda(arguments...);
  }
  template <class... Arguments>
  static void loss(const Arguments&... arguments) {
    kernels::pq_loss_cuda(arguments...);
  }
  template <class... Arguments>
  static void stats(const Arguments&... arguments) {
    kernels::pq_stats_cuda(arguments...);
  }
};
#endif

void check_fit(const kernels::Codebook& codebook, const kernels::View<4>& z, const char* op) {
  const int64_t H = z.size[1], D = z.size[3], M = codebook.subspaces, d = codebook.width;
  STD_TORCH_CHECK(H > 0 && H % codebook.groups == 0 && M * d >= D && (M - 1) * d < D, "longspan::", op,
                  ": the codebook does not fit the heads and D of z");
}

void check_power(int64_t power, const char* op) {
  STD_TORCH_CHECK(power == 1 || power == 2, "longspan::", op, ": power must be 1 or 2");
}

template <class Device>
Tensor pq_encode(const Tensor& z, const Tensor& codebook, int64_t power) {
  const auto vectors = view_of<4>(z);
  const kernels::Codebook book = codebook_of(codebook, z, "pq_encode");
  check_fit(book, vectors, "pq_encode");
  check_power(power, "pq_encode");
  Tensor codes = torch::stable::new_empty(
      z, {z.size(0), z.size(1), z.size(2), kernels::code_words(book.subspaces, book.codewords)}, ScalarType::Int);
  typename Device::Context context(z);
  Device::encode(book, int(power), kernels::PqTensors{vectors, static_cast<int32_t*>(codes.mutable_data_ptr())},
                 context.context());
  return codes;
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor> pq_loss(const Tensor& z, const Tensor& codebook, const Tensor& codes, int64_t power,
                                           double eps, bool need_dz) {
  const auto vectors = view_of<4>(z);
  const kernels::Codebook book = codebook_of(codebook, z, "pq_loss");
  check_fit(book, vectors, "pq_loss");
  check_power(power, "pq_loss");
  const int32_t* numbers = codes_of(codes, book, z.size(0), z.size(1), z.size(2), "pq_loss");
  Tensor loss = torch::stable::new_empty(z, {}, statistics_type(z));
  Tensor dcodebook = torch::stable::new_empty(codebook, {book.groups, book.subspaces, book.codewords, book.width});
  Tensor dz =
      need_dz ? torch::stable::new_empty(z, {z.size(0), z.size(1), z.size(2), z.size(3)}) : torch::stable::new_empty(z, {0});
  typename Device::Context context(z);
  Device::loss(book, int(power), eps, 1.0,
               kernels::PqLossTensors{vectors, need_dz ? view_of<4>(dz) : kernels::View<4>{}, numbers,
                                      loss.mutable_data_ptr(), dcodebook.mutable_data_ptr()},
               context.context());
  return {loss, dcodebook, dz};
}

template <class Device>
std::tuple<Tensor, Tensor> pq_stats(const Tensor& z, const Tensor& codes, int64_t groups, int64_t subspaces,
                                    int64_t codewords, int64_t width) {
  const auto vectors = view_of<4>(z);
  STD_TORCH_CHECK(groups >= 1 && subspaces >= 1 && subspaces <= kernels::kMaxSubspaces && codewords >= 1 &&
                      codewords <= kernels::kMaxCodewords && width >= 1,
                  "longspan::pq_stats: groups and width must be positive, subspaces 1 to 64, codewords 1 to 256");
  const kernels::Codebook book{nullptr, groups, subspaces, codewords, width};
  check_fit(book, vectors, "pq_stats");
  const int32_t* numbers = codes_of(codes, book, z.size(0), z.size(1), z.size(2), "pq_stats");
  Tensor sums = torch::stable::new_empty(z, {groups, subspaces, codewords, width}, statistics_type(z));
  Tensor counts = torch::stable::new_empty(z, {groups, subspaces, codewords}, ScalarType::Int);
  typename Device::Context context(z);
  Device::stats(
      book,
      kernels::PqStatistics{vectors, numbers, sums.mutable_data_ptr(), static_cast<int32_t*>(counts.mutable_data_ptr())},
      context.context());
  return {sums, counts};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(longspan, CPU, m) {
  m.impl("pq_encode", TORCH_BOX(&pq_encode<Cpu>));
  m.impl("pq_loss", TORCH_BOX(&pq_loss<Cpu>));
  m.impl("pq_stats", TORCH_BOX(&pq_stats<Cpu>));
}

#ifdef LONGSPAN_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(longspan, CUDA, m) {
  m.impl("pq_encode", TORCH_BOX(&pq_encode<Cuda>));
  m.impl("pq_loss", TORCH_BOX(&pq_loss<Cuda>));
  m.impl("pq_stats", TORCH_BOX(&pq_stats<Cuda>));
}
#endif

}  // namespace longspan::ops
