// torch ops longspan::rope and rope_ (in place): check, allocate, launch.
#include "kernels/rope/rope.h"

#include "ops/cuda.h"
#include "ops/tensor.h"

namespace longspan::ops {
namespace {

/// Where an op runs.
struct Cpu {
  static void run(const kernels::RopeSpec& spec, const kernels::RopeTensors& io, const Tensor& like) {
    TorchContext torch_context(like);
    kernels::rope_cpu(spec, io, torch_context.context());
  }
};

#ifdef LONGSPAN_WITH_CUDA
struct Cuda {
  static void run(const kernels::RopeSpec& spec, const kernels::RopeTensors& io, const Tensor& like) {
    TorchCudaContext torch_context(like);
    kernels::rope_cuda(spec, io, torch_context.context());
  }
};
#endif

template <class Device>
void rotate(const Tensor& x, const Tensor& y, const Tensor& cos, const Tensor& sin, const Tensor& positions,
            bool interleaved, bool inverse) {
  const auto c = view_of<2>(cos), s = view_of<2>(sin);
  STD_TORCH_CHECK(c.size[0] == s.size[0] && c.size[1] == s.size[1] && cos.scalar_type() == statistics_type(x) &&
                      sin.scalar_type() == statistics_type(x),
                  "longspan::rope: cos and sin must be [P, N] in float32, or float64 for float64");
  STD_TORCH_CHECK(x.dim() == 4 && 2 * c.size[1] <= x.size(3), "longspan::rope: the tables are wider than a head");
  STD_TORCH_CHECK(positions.dim() == 2 && (positions.size(0) == 1 || positions.size(0) == x.size(0)) &&
                      positions.size(1) == x.size(2) && positions.is_contiguous() &&
                      positions.scalar_type() == ScalarType::Long,
                  "longspan::rope: positions must be contiguous int64 [1 or B, T]");
  Device::run({interleaved, inverse},
              {view_of<4>(x), view_of<4>(y), c, s, static_cast<const int64_t*>(positions.const_data_ptr()),
               positions.size(0) == 1 ? 0 : positions.size(1)},
              x);
}

template <class Device>
Tensor rope(const Tensor& x, const Tensor& cos, const Tensor& sin, const Tensor& positions, bool interleaved, bool inverse) {
  // [B,T,H,D] storage, as projections have.
  Tensor storage = torch::stable::new_empty(x, {x.size(0), x.size(2), x.size(1), x.size(3)});
  Tensor y = torch::stable::transpose(storage, 1, 2);
  rotate<Device>(x, y, cos, sin, positions, interleaved, inverse);
  return y;
}

template <class Device>
void rope_(const Tensor& x, const Tensor& cos, const Tensor& sin, const Tensor& positions, bool interleaved, bool inverse) {
  rotate<Device>(x, x, cos, sin, positions, interleaved, inverse);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(longspan, CPU, m) {
  m.impl("rope", TORCH_BOX(&rope<Cpu>));
  m.impl("rope_", TORCH_BOX(&rope_<Cpu>));
}

#ifdef LONGSPAN_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(longspan, CUDA, m) {
  m.impl("rope", TORCH_BOX(&rope<Cuda>));
  m.impl("rope_", TORCH_BOX(&rope_<Cuda>));
}
#endif

}  // namespace longspan::ops
