#pragma once
#include <stdexcept>
#include <string>

#include "common/context.h"

namespace longspan::kernels {

/// silu: x sigmoid(x); gelu: x Phi(x), with the normal distribution exactly or by tanh (Hendrycks and Gimpel 2016, section
/// 2); relu2: max(x, 0)^2 (So et al. 2021).
enum class Activation : int { kSilu, kGelu, kGeluTanh, kRelu, kRelu2 };
inline constexpr const char* kActivationNames[] = {"silu", "gelu", "gelu_tanh", "relu", "relu2"};

/// Throws std::invalid_argument that names what is allowed.
inline Activation activation_named(const std::string& name) {
  std::string allowed;
  for (int i = 0; i < 5; ++i) {
    if (name == kActivationNames[i]) return Activation(i);
    allowed += std::string(i ? ", " : "") + kActivationNames[i];
  }
  throw std::invalid_argument("activation is '" + name + "'; allowed: " + allowed);
}

/// y = act(gate) * up, or act(gate) alone where up has null data (Shazeer 2020).
///
/// gate, up, y [T,F]      one dtype, last dimension contiguous, any row stride; y may be gate or up
struct GluTensors {
  Activation activation;
  View<2> gate, up, y;
};

/// dgate = dy up act'(gate), dup = dy act(gate). All [T,F]; dgate and dup may be any of dy, gate and up: each element is
/// read before it is written. The gradient of relu at 0 is 0.
struct GluGradients {
  Activation activation;
  View<2> dy, gate, up, dgate, dup;
};

/// Forward. Arithmetic is in float, or double for double, and rounded once. No scratch.
void glu_fwd_cpu(const GluTensors& io, const Context& context);
/// Backward, from gate and up alone; as the forward. In place it needs no memory at all.
void glu_bwd_cpu(const GluGradients& io, const Context& context);

/// The same on CUDA for float, bfloat16 and float16. Throws std::invalid_argument for float64.
void glu_fwd_cuda(const GluTensors& io, const CudaContext& context);
void glu_bwd_cuda(const GluGradients& io, const CudaContext& context);

}  // namespace longspan::kernels
