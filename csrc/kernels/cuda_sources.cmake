# The CUDA kernels, from the project's root: of the library, and of the emulation that tests them.
set(CUDA_KERNEL_SOURCES
  csrc/kernels/attention/attention_cuda.cu
  csrc/kernels/attention/bwd_bf16.cu
  csrc/kernels/attention/bwd_f16.cu
  csrc/kernels/attention/bwd_f32.cu
  csrc/kernels/attention/delta.cu
  csrc/kernels/attention/fwd_bf16.cu
  csrc/kernels/attention/fwd_f16.cu
  csrc/kernels/attention/fwd_f32.cu
  csrc/kernels/attention/prepare.cu
  csrc/kernels/glu/glu.cu
  csrc/kernels/lora/lora_cuda.cu
  csrc/kernels/lora/low_rank.cu
  csrc/kernels/lora/low_rank_fma.cu
  csrc/kernels/lora/parts.cu
  csrc/kernels/lora/product.cu
  csrc/kernels/lora/product_f32.cu
  csrc/kernels/loss/cross_entropy.cu
  csrc/kernels/loss/linear_cross_entropy_cuda.cu
  csrc/kernels/norm/bwd.cu
  csrc/kernels/norm/fwd.cu
  csrc/kernels/rope/rope.cu
)
# Of these, what includes CuTe.
set(CUTE_KERNEL_SOURCES
  csrc/kernels/lora/product.cu
)
