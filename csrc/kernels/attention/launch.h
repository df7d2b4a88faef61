#pragma once
// The launches between the entry points and the kernels' templates, one function per source file that instantiates them.
// All throw std::runtime_error with CUDA's text.
#include "attention/device.cuh"

namespace longspan::kernels {

/// Minima and maxima per run: writes args.ranges.rows and args.ranges.keys.
void launch_prepare(const AttentionArguments& args, cudaStream_t stream);

/// Row terms of the backward: writes args.lse_log2 and args.delta.
void launch_delta(const AttentionArguments& args, DType dtype, cudaStream_t stream);

/// `aligned`: addresses, and strides in bytes, of all arrays are multiples of 16.
void launch_fwd_bf16(const AttentionArguments& args, bool aligned, cudaStream_t stream);
void launch_fwd_f16(const AttentionArguments& args, bool aligned, cudaStream_t stream);
void launch_fwd_f32(const AttentionArguments& args, bool aligned, cudaStream_t stream);
void launch_bwd_bf16(const AttentionArguments& args, bool aligned, cudaStream_t stream);
void launch_bwd_f16(const AttentionArguments& args, bool aligned, cudaStream_t stream);
void launch_bwd_f32(const AttentionArguments& args, bool aligned, cudaStream_t stream);

}  // namespace longspan::kernels
