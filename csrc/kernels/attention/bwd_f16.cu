#include "attention/bwd_mma_launch.cuh"

namespace longspan::kernels {

void launch_bwd_f16(const AttentionArguments& args, bool aligned, cudaStream_t stream) {
  launch_backward_mma<__half>(args, aligned, stream);
}

}  // namespace longspan::kernels
