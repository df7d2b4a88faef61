// torch ops longspan::glu_fwd and glu_bwd: check, allocate, launch.
#include "kernels/glu/glu.h"

#include <string>
#include <tuple>

#include "ops/cuda.h"
#include "ops/tensor.h"

namespace longspan::ops {
namespace {

using kernels::View;

/// gate and up: two tensors, or the halves of the rows of one.
struct Halves {
  View<2> gate, up;

  Halves(const Tensor& x, const std::optional<Tensor>& up_, bool packed) : gate(view_of<2>(x)) {
    STD_TORCH_CHECK(!packed || (!up_ && gate.size[1] % 2 == 0),
                    "longspan::glu: packed rows hold gate and up, and nothing else does");
    if (up_) {
      up = view_of<2>(*up_);
      STD_TORCH_CHECK(up.size[0] == gate.size[0] && up.size[1] == gate.size[1] && up.dtype == gate.dtype,
                      "longspan::glu: gate and up do not fit");
    }
    if (packed) {
      gate.size[1] /= 2;
      up = gate;
      up.data = static_cast<char*>(gate.data) + gate.size[1] * kernels::element_size(gate.dtype);
    }
  }
};

/// Where an op runs.
struct Cpu {
  static void fwd(const kernels::GluTensors& io, const Tensor& like) {
    TorchContext torch_context(like);
    kernels::glu_fwd_cpu(io, torch_context.context());
  }
  static void bwd(const kernels::GluGradients& io, const Tensor& like) {
    TorchContext torch_context(like);
    kernels::glu_bwd_cpu(io, torch_context.context());
  }
};

#ifdef LONGSPAN_WITH_CUDA
struct Cuda {
  static void fwd(const kernels::GluTensors& io, const Tensor& like) {
    TorchCudaContext torch_context(like);
    kernels::glu_fwd_cuda(io, torch_context.context());
  }
  static void bwd(const kernels::GluGradients& io, const Tensor& like) {
    TorchCudaContext torch_context(like);
    kernels::glu_bwd_cuda(io, torch_context.context());
  }
};
#endif

template <class Device>
Tensor glu_fwd(const Tensor& gate, std::optional<Tensor> up, StringHandle activation, bool packed) {
  const kernels::Activation kind = kernels::activation_named(taken(activation));
  const Halves in(gate, up, packed);
  Tensor y = torch::stable::new_empty(gate, {in.gate.size[0], in.gate.size[1]});
  Device::fwd({kind, in.gate, in.up, view_of<2>(y)}, gate);
  return y;
}

template <class Device>
std::tuple<Tensor, Tensor> glu_bwd(const Tensor& dy, const Tensor& gate, std::optional<Tensor> up, StringHandle activation,
                                   bool packed) {
  const kernels::Activation kind = kernels::activation_named(taken(activation));
  const Halves in(gate, up, packed);
  const auto d = view_of<2>(dy);
  STD_TORCH_CHECK(d.size[0] == in.gate.size[0] && d.size[1] == in.gate.size[1] && d.dtype == in.gate.dtype,
                  "longspan::glu: dy does not fit gate");
  Tensor dgate = torch::stable::new_empty(gate, {gate.size(0), gate.size(1)});
  Tensor dup = up ? torch::stable::new_empty(gate, {gate.size(0), gate.size(1)}) : torch::stable::new_empty(gate, {0});
  const Halves out(dgate, up ? std::optional<Tensor>(dup) : std::nullopt, packed);
  Device::bwd({kind, d, in.gate, in.up, out.gate, out.up}, gate);
  return {dgate, dup};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(longspan, CPU, m) {
  m.impl("glu_fwd", TORCH_BOX(&glu_fwd<Cpu>));
  m.impl("glu_bwd", TORCH_BOX(&glu_bwd<Cpu>));
}

#ifdef LONGSPAN_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(longspan, CUDA, m) {
  m.impl("glu_fwd", TORCH_BOX(&glu_fwd<Cuda>));
  m.impl("glu_bwd", TORCH_BOX(&glu_bwd<Cuda>));
}
#endif

}  // namespace longspan::ops
