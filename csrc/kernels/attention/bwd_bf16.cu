#include "attention/bwd_mma_launch.cuh"

namespace longspan::kernels {

void launch_bwd_bf16(const AttentionArguments& args, bool aligned, cudaStream_t stream) {
  launch_backward_mma<__nv_bfloat16>(args, aligned, stream);
}

}  // namespace longspan::kernels
