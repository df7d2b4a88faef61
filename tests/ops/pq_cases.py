"""Vectors, codebooks and selections that the tests of codes share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longspan import ops
from longspan.ops import KeySelection, TokenLayout
from longspan.ops.reference import pq as reference
from longspan.ops.reference import topl as choices
from longspan.ops.reference.attention import visible


@dataclass(frozen=True)
class Problem:
    """Queries [B,H,T,D] and keys [B,K,S,D] (S None: T), and a codebook [G,M,E,d]."""

    B: int = 2
    H: int = 4
    K: int = 2
    T: int = 70
    D: int = 16
    S: int | None = None
    subspaces: int = 4
    codewords: int = 16
    groups: int = 2
    seed: int = 0

    @property
    def width(self) -> int:
        """Components of a piece."""
        return -(-self.D // self.subspaces)

    def tensors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, and a codebook of the dtype that they are computed in: some of the keys, disturbed."""
        generator = torch.Generator().manual_seed(self.seed)
        keys = self.T if self.S is None else self.S

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        q, k = draw(self.B, self.T, self.H, self.D), draw(self.B, keys, self.K, self.D)
        codebook = draw(self.groups, self.subspaces, self.codewords, self.width)
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        return q.to(dtype).transpose(1, 2), k.to(dtype).transpose(1, 2), codebook.to(kind)


CASES = {
    "plain": Problem(),
    "one of each": Problem(B=1, H=1, K=1, T=1, D=1, subspaces=1, codewords=1, groups=1),
    "no rows": Problem(T=0),
    "shared codebook": Problem(groups=1),
    "nine heads of three": Problem(B=1, H=9, K=3, T=130, D=64, subspaces=8, groups=3),
    "a last piece that is not full": Problem(D=20, subspaces=3),
    "few codewords": Problem(codewords=5),
    "bytes": Problem(D=24, subspaces=6, codewords=40),
    "many pieces": Problem(B=1, H=2, K=1, T=33, D=128, subspaces=16, groups=1),
    "odd pieces": Problem(D=15, subspaces=5),
    "some chunks": Problem(B=1, H=2, K=2, T=1100, D=8, subspaces=2, groups=1),
}


def pack(numbers: Tensor, codewords: int) -> Tensor:
    """Numbers [...,M] as the kernels hold them: int32 [...,W]."""
    bits = 4 if codewords <= 16 else 8
    words = -(-numbers.shape[-1] * bits // 32)
    packed = torch.zeros(*numbers.shape[:-1], words, dtype=torch.int64)
    for m in range(numbers.shape[-1]):
        packed[..., m * bits // 32] |= numbers[..., m] << m * bits % 32
    return torch.where(packed >= 2**31, packed - 2**32, packed).int()


@dataclass(frozen=True)
class Choice:
    """A choice of keys: the codes are those of a problem's vectors."""

    problem: Problem
    budget: int = 16
    scorer: str = "adc"
    window: int = 0
    sinks: int = 0
    causal: bool = True
    model_window: int | None = None
    documents: tuple[int, ...] = ()
    padded: int = 0  # padding before the tokens of the first batch row

    def layout(self) -> TokenLayout | None:
        """Documents or padding, or new queries behind cached keys."""
        p = self.problem
        if self.documents:
            borders = torch.tensor([0, *self.documents]).cumsum(0)
            return TokenLayout.packed(borders)
        if self.padded:
            mask = torch.ones(p.B, p.T, dtype=torch.bool)
            mask[0, : self.padded] = False
            return TokenLayout.padded(mask)
        if p.S is not None and p.S != p.T:
            return TokenLayout.cached(p.S - p.T, p.T)
        return None

    def who(self, dtype: torch.dtype) -> dict[str, Any]:
        """Whose scores: arguments of `topl_threshold` with the codes made by the reference."""
        p = self.problem
        q, k, codebook = p.tensors(dtype)
        given = {"key_codes": pack(reference.pq_encode(k, codebook), p.codewords)}
        if self.scorer == "adc":
            return given | {"q": q, "codebook": codebook}
        queries = pack(reference.pq_encode(q, codebook), p.codewords)
        return given | {"query_codes": queries, "subspaces": p.subspaces, "codewords": p.codewords}

    def where(self) -> dict[str, Any]:
        """What may be reached, and what is kept in any case."""
        return {
            "causal": self.causal,
            "window": self.window,
            "sinks": self.sinks,
            "layout": self.layout(),
            "model_window": self.model_window,
        }

    def select(self, dtype: torch.dtype = torch.float32) -> tuple[KeySelection, Tensor | None]:
        """What the op chooses, and the queries."""
        who = self.who(dtype)
        return ops.topl_threshold(budget=self.budget, **who, **self.where()), who.get("q")

    def masks(self) -> tuple[Tensor, Tensor]:
        """bool [.,H,T,S]: what can be reached, and what of that is near."""
        p = self.problem
        keys = p.T if p.S is None else p.S
        sizes = (p.H, p.T, keys, self.layout(), self.model_window)
        reach = visible(ops.AttentionPattern.full(self.causal), *sizes)
        if not self.window and not self.sinks:
            return reach, torch.zeros_like(reach)
        near = ops.AttentionPattern("window", causal=self.causal, size=self.window, sinks=self.sinks)
        return reach, visible(near, *sizes)

    def oracle(self, selection: KeySelection, q: Tensor | None) -> Tensor:
        """bool [B,H,T,S] by sorting."""
        found = choices.scores(selection, q)
        reach, near = (mask.expand(found.shape) for mask in self.masks())
        return choices.topl_threshold(found, reach, near, self.budget)


CHOICES = {
    "adc": Choice(CASES["plain"]),
    "match": Choice(CASES["plain"], scorer="match"),
    "adc, window and sinks": Choice(CASES["plain"], window=5, sinks=2),
    "match, window and sinks": Choice(CASES["plain"], scorer="match", window=4, sinks=3),
    "nine heads of three": Choice(CASES["nine heads of three"], budget=20, window=4, sinks=4),
    "nine heads of three, match": Choice(CASES["nine heads of three"], budget=20, scorer="match"),
    "documents": Choice(Problem(B=1, T=90), documents=(5, 40, 0, 45), window=3, sinks=2),
    "padding": Choice(CASES["plain"], padded=11, window=2, sinks=1),
    "a cache": Choice(Problem(T=9, S=90), budget=12, window=3, sinks=1),
    "model window": Choice(CASES["plain"], model_window=30, budget=8, window=2),
    "both ways": Choice(CASES["plain"], causal=False, scorer="match"),
    "more than there is": Choice(CASES["plain"], budget=1000),
    "one key": Choice(CASES["plain"], budget=1),
    "near ones alone": Choice(CASES["plain"], budget=4, window=8, sinks=2),
    "bytes": Choice(CASES["bytes"], budget=9),
    "bytes, match": Choice(CASES["bytes"], budget=9, scorer="match"),
    "one codeword": Choice(Problem(codewords=1, T=80), budget=10, scorer="match"),
    "many pieces": Choice(CASES["many pieces"], budget=7),
    "long": Choice(Problem(B=1, H=2, K=1, T=1100, D=8, subspaces=2, groups=1), budget=137, window=30, sinks=4),
}
