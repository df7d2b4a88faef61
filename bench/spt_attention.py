"""Product-quantised attention alone: forward and backward of its forms against the dense engine and torch's SDPA.

Queries and keys are SmolLM2-135M's heads (9 and 3 of 64) with the clusters that k-means finds in them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.attention import sdpa
from bench.lean_layers import REST
from longspan import ops
from longspan.attention import PQAttention
from longspan.memory import measure
from longspan.nn.codebook import Codebook
from longspan.patch.backend import Call
from longspan.patch.pq import PQAttend
from longspan.patch.steps import Steps

H, K, D = 9, 3, 64
CALL = Call("bench", None, None, None, None)


@dataclass
class Inputs:
    """q, k, v that require gradients and the gradient of out, as projections store them; a codebook of the keys."""

    q: Tensor
    k: Tensor
    v: Tensor
    dout: Tensor
    book: Codebook

    @classmethod
    def of(cls, length: int) -> Inputs:
        """Random ones whose keys come in clusters, as a model's do."""
        torch.manual_seed(0)
        q, k, v, dout = (torch.randn(1, length, heads, D).transpose(1, 2) for heads in (H, K, K, H))
        centres = torch.randn(K, 32, D)
        k = k * 0.5 + centres[:, torch.randint(32, (length,))][None].transpose(1, 2).contiguous().transpose(1, 2)
        book = Codebook(K, D)
        book.fit(k)
        return cls(*(x.requires_grad_() for x in (q, k, v)), dout, book)

    def through(self, forward: Callable[[], Tensor]) -> None:
        """Forward and backward."""
        torch.autograd.grad(forward(), (self.q, self.k, self.v), self.dout)

    def dense(self) -> Tensor:
        """The dense engine."""
        out = ops.attention(self.q, self.k, self.v)
        assert isinstance(out, Tensor)
        return out

    def sdpa(self) -> Tensor:
        """torch's, with keys and values repeated as transformers does."""
        return sdpa(self.q, self.k, self.v)

    def pq(self, **config: Any) -> Callable[[], Tensor]:
        """A form of the method, choice included."""
        asked = PQAttend.of(PQAttention(**config), self.q.shape[2], Steps())

        def forward() -> Tensor:
            codes = [self.book.encode(self.k.detach())]
            return asked._attend(self.q, self.k, self.v, self.book, codes, CALL)

        return forward


def raced(length: int, forms: dict[str, dict[str, Any]], rounds: int) -> dict[str, Any]:
    """Medians of seconds of forward and backward, in turn, and medians of the dense engine's and SDPA's ratios to them;
    bytes that live between the two beside q, k, v and out.
    """
    inputs = Inputs.of(length)
    ways = {"dense": inputs.dense, "torch SDPA": inputs.sdpa} | {n: inputs.pq(**c) for n, c in forms.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    saved: dict[str, int] = {}
    for turn in range(rounds + 1):
        for name, forward in ways.items():
            time.sleep(REST)
            if turn == 0:  # warms up as well
                with measure() as live:
                    out = forward()
                saved[name] = live.end_bytes - out.untyped_storage().nbytes()
                del out
                continue
            start = time.perf_counter()
            inputs.through(forward)
            seconds[name].append(time.perf_counter() - start)

    def ratio(other: str, name: str) -> float:
        return statistics.median(b / s for b, s in zip(seconds[other], seconds[name], strict=True))

    return {
        "length": length,
        "rounds": rounds,
        "ways": {
            name: {
                "seconds": statistics.median(seconds[name]),
                "faster_than_dense": ratio("dense", name),
                "faster_than_sdpa": ratio("torch SDPA", name),
                "saved_bytes": saved[name],
            }
            for name in ways
        },
    }


def mask(rounds: int) -> dict[str, Any]:
    """Form mask at 4096 tokens, with half and with twice the keys: bytes do not depend on them. allowed: by the formula
    N T (4 W + 9) + B K S 4 W, W = 1, of the default.
    """
    forms = {f"mask, {ratio:g}": {"form": "mask", "keep_ratio": ratio} for ratio in (0.125, 0.0625, 0.25)}
    found = [raced(length, forms, rounds) for length in (4096, 8192)]
    for one in found:
        one["allowed_bytes"] = H * one["length"] * (4 + 9) + K * one["length"] * 4
    return {"lengths": found}


def block(rounds: int) -> dict[str, Any]:
    """Form block at 16384 tokens and a density of 1/8."""
    return raced(
        16384, {"block, 0.125": {"form": "block"}, "block, 0.0625": {"form": "block", "keep_ratio": 0.0625}}, rounds
    )


def lists(rounds: int) -> dict[str, Any]:
    """Form list by density: where reading listed keys beats dense tiles."""
    ratios = (0.125, 0.0625, 0.03125, 0.015625)
    forms = {f"list, {ratio:g}": {"form": "list", "keep_ratio": ratio} for ratio in ratios}
    return raced(8192, forms, rounds)
