"""Block-score problems that the op tests, the kernel tests and the CUDA tests share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longspan.ops.blocks import TokenBlocks
from longspan.ops.reference.select import block_score as reference


@dataclass(frozen=True)
class Problem:
    """q [M,H,D], k [M,K,D] and segments (first row, rows) of the M rows in blocks."""

    M: int = 150
    heads: tuple[int, int] = (4, 2)
    D: int = 32
    segments: tuple[tuple[int, int], ...] = ((0, 150),)
    block: int = 64
    causal: bool = False
    scale: float | None = None

    def tensors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """q and k as parts of one packed projection, so that rows are apart."""
        g = torch.Generator().manual_seed(self.M + self.D)
        H, K = self.heads
        rows = torch.randn(self.M, H + K, self.D, generator=g, dtype=torch.float64).to(dtype)
        return rows[:, :H], rows[:, H:]

    def blocks(self) -> TokenBlocks:
        return TokenBlocks.of(self.segments, self.M, self.block)

    def oracle(self, dtype: torch.dtype, given: torch.dtype) -> Tensor:
        """By the definition in `dtype`, of inputs in `given`."""
        listed = []
        for first, count in self.segments:
            begins = range(first, first + count, self.block)
            listed.append([(begin, min(self.block, first + count - begin)) for begin in begins])
        q, k = (x.to(dtype) for x in self.tensors(given))
        return reference(q, k, listed, causal=self.causal, scale=self.scale)


CASES = {
    "one segment": Problem(),
    "causal": Problem(causal=True),
    "ragged documents": Problem(segments=((0, 70), (70, 1), (80, 65), (145, 0)), block=32),
    "ragged causal": Problem(segments=((0, 70), (70, 1), (80, 65)), block=32, causal=True),
    "long blocks": Problem(M=300, segments=((0, 300),), block=200, causal=True),
    "the longest blocks": Problem(M=530, heads=(2, 1), segments=((0, 530),), block=256),
    "short blocks": Problem(M=40, segments=((0, 23), (23, 17)), block=5, causal=True),
    "single tokens": Problem(M=9, segments=((0, 9),), block=1, causal=True),
    "nine heads of three": Problem(M=130, heads=(9, 3), D=64, segments=((0, 130),)),
    "wide heads": Problem(M=70, heads=(2, 2), D=200, segments=((0, 70),), block=32),
    "odd heads": Problem(M=70, heads=(3, 1), D=21, segments=((0, 70),), block=32, scale=0.7),
    "one column": Problem(M=20, heads=(1, 1), D=1, segments=((0, 20),), block=8),
    "no segment": Problem(M=8, segments=()),
}
