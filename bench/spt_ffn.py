"""The routed feed-forward branch alone against the dense lean one: forward and backward, and bytes kept between."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import Tensor

from bench.lean_layers import REST
from longspan import ops
from longspan.memory import measure

BLOCKS, ACTIVE, RANK = 4, 2, 8
SIZES = ((576, 1536), (2048, 8192))


def branch(C: int, F: int, rows: int) -> dict[str, Any]:
    """A SwiGLU branch with frozen weights and adapters on its three projections; router weights that use all blocks."""
    torch.manual_seed(0)

    def projection(inputs: int, outputs: int) -> ops.Projection:
        a, b = torch.randn(RANK, inputs) / inputs**0.5, torch.randn(outputs, RANK) * 0.01
        return ops.Projection(
            torch.randn(outputs, inputs) / inputs**0.5, None, a.requires_grad_(), b.requires_grad_(), 2.0
        )

    return {
        "x": torch.randn(rows, C).requires_grad_(),
        "up": [projection(C, F), projection(C, F)],
        "down": projection(F, C),
        "norm": ops.Norm(torch.ones(C)),
        "router": (torch.randn(BLOCKS, C) / C**0.5).requires_grad_(),
        "bias": torch.zeros(BLOCKS, requires_grad=True),
    }


def dense(b: dict[str, Any]) -> Tensor:
    """What `patch.layers` runs."""
    wide = ops.norm_lora_linear(b["x"], b["up"], b["norm"])
    hidden = ops.glu(*wide, activation="silu")
    return ops.norm_lora_linear(hidden, [b["down"]])[0]


def routed(b: dict[str, Any], active: int = ACTIVE) -> Tensor:
    """Router, plan and products."""
    logits = ops.route_logits(b["x"], b["router"], b["bias"], b["norm"])
    act, gates = ops.route_topk(logits, active)
    plan = ops.route_plan(act, BLOCKS)
    return ops.routed_ffn(b["x"], b["up"], b["down"], plan, gates, b["norm"], activation="silu")


def ffn(rounds: int, rows: int = 4096) -> dict[str, Any]:
    """Both sizes; ratios are medians over rounds."""
    found = []
    for C, F in SIZES:
        b = branch(C, F, rows)
        wanted = [b["x"], b["router"], b["bias"], *(t for p in (*b["up"], b["down"]) for t in (p.lora_a, p.lora_b))]
        ways = {
            "dense": lambda b=b: dense(b),
            "routed": lambda b=b: routed(b),
            "all blocks": lambda b=b: routed(b, BLOCKS),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        kept: dict[str, float] = {}
        dy = torch.randn(rows, C)
        for turn in range(rounds + 1):
            for name, forward in ways.items():
                time.sleep(REST)
                if turn == 0:
                    with measure() as live:
                        y = forward()
                    kept[name] = (live.end_bytes - y.untyped_storage().nbytes()) / rows
                    del y
                    continue
                start = time.perf_counter()
                torch.autograd.grad(forward(), wanted, dy, allow_unused=True)
                seconds[name].append(time.perf_counter() - start)
        pairs = {name: zip(seconds["dense"], times, strict=True) for name, times in seconds.items()}
        found.append(
            {
                "C": C,
                "F": F,
                "rows": rows,
                "seconds": {name: statistics.median(times) for name, times in seconds.items()},
                "faster_than_dense": {name: statistics.median(d / s for d, s in both) for name, both in pairs.items()},
                "bytes_per_row": kept,
                "kept_of_dense": {name: bytes_ / kept["dense"] for name, bytes_ in kept.items()},
            }
        )
    return {"sizes": found}
