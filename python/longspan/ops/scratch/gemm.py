"""The matrix product of csrc/kernels/common/gemm.h (gemm_dispatch.cpp)."""

from __future__ import annotations

from longspan.ops.scratch.workspace import Workspace

ROWS, COLUMNS, DEPTH, COUNTERS, WIDEST = 2048, 3072, 384, 512, 64


def product_bytes(m: int, n: int, k: int, *, element: int, in_place: bool, rounds: bool, rank: int = 0) -> int:
    """Scratch of one product. element: of the sums; in_place: A is read where it is; rounds: C is bfloat16."""
    m, n, k = min(m, ROWS) + WIDEST, min(n, COLUMNS) + WIDEST, min(k, DEPTH)
    packed = n if in_place else m + n
    return (2 * (packed * k + n * rank) + (m * n if rounds else 0)) * element + COUNTERS * 8 + 8 * 64


def gemm(ws: Workspace, m: int, n: int, k: int, *, element: int, in_place: bool, rounds: bool, rank: int = 0) -> None:
    """gemm_cpu."""
    if m > 0 and n > 0:
        ws.take(product_bytes(m, n, k, element=element, in_place=in_place, rounds=rounds, rank=rank))


class OwnGemm:
    """The product with scratch that is kept between calls."""

    def __init__(self, ws: Workspace, element: int) -> None:
        self.ws, self.element, self.bytes = ws, element, 0

    def run(self, m: int, n: int, k: int, *, in_place: bool, rounds: bool) -> None:
        """One product; takes the largest scratch of its kind when it needs more than there is."""
        if m <= 0 or n <= 0:
            return
        if product_bytes(m, n, k, element=self.element, in_place=in_place, rounds=rounds) > self.bytes:
            self.bytes = product_bytes(ROWS, COLUMNS, DEPTH, element=self.element, in_place=False, rounds=rounds)
            self.ws.take(self.bytes)
