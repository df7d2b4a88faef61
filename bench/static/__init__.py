"""The static gate: what the compiler made of the CUDA kernels, and the times that predicts. Needs nvcc, no GPU."""
