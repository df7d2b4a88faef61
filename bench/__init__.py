"""Benchmarks: each figure beside its baselines and the matrix-product rate of the same rounds."""
