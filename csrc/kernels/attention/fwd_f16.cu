#include "attention/fwd_mma_launch.cuh"

namespace longspan::kernels {

void launch_fwd_f16(const AttentionArguments& args, bool aligned, cudaStream_t stream) {
  launch_forward_mma<__half>(args, aligned, stream);
}

}  // namespace longspan::kernels
