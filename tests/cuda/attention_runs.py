"""Runs the CUDA attention kernels in the emulation on torch tensors, with the arguments of `longspan.ops.attention`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longspan.ops import AttentionPattern, KeySelection, TokenLayout
from tests.cuda import arrays, simt
from tests.laws import BACKWARD, FORWARD, assert_error_bound
from tests.ops.attention_cases import functional, inputs, oracle, torchs

DIRECTIONS = {"out": FORWARD, "lse": FORWARD, "dq": BACKWARD, "dk": BACKWARD, "dv": BACKWARD}


@dataclass(frozen=True)
class Problem:
    """One attention call: shape (B, H, K, T, D), keys S (None: T), and what `attention` is given. With `low` all scores
    are 128 lower at D = 64: e^(0 - log-sum-exp), the share of a key that is not there, is infinite."""

    shape: tuple[int, int, int, int, int]
    pattern: AttentionPattern
    S: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    low: bool = False

    def tensors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (x.detach().clone() for x in inputs(*self.shape, self.S, dtype))
        if self.low:
            q[..., 0], k[..., 0] = 32.0, -32.0
        return q, k, v


@dataclass
class Outcome:
    """Results as [B, heads, tokens, D] tensors, and both runs' reports."""

    values: dict[str, Tensor]
    forward: simt.Result
    backward: simt.Result | None

    @property
    def reports(self) -> list[simt.Report]:
        return [*self.forward.reports, *(self.backward.reports if self.backward else [])]

    @property
    def unwritten(self) -> int:
        runs = [self.forward, *([self.backward] if self.backward else [])]
        return sum(sum(run.unwritten.values()) for run in runs)

    def conflicts(self) -> int:
        runs = [self.forward, *([self.backward] if self.backward else [])]
        return sum(run.statistics["ldmatrix_conflicts"] for run in runs)


def storage(x: Tensor, padding: int = 0) -> np.ndarray:
    """[B, heads, tokens, D] as [B, tokens, heads, D + padding]; bfloat16 as its bits."""
    return arrays.bits(x.transpose(1, 2), padding)


def tensor(array: np.ndarray, dtype: torch.dtype, D: int) -> Tensor:
    """What `storage` made, as [B, heads, tokens, D]."""
    return arrays.tensor(array, dtype, D).transpose(1, 2)


def codes(selection: KeySelection) -> dict[str, simt.Argument]:
    """A selection's arrays and numbers."""
    names = ("key_codes", "query_codes", "codebook", "threshold", "cut")
    found = {name: getattr(selection, name) for name in names}
    numbers = {"subspaces": selection.subspaces, "codewords": selection.codewords}
    return {name: x.numpy() for name, x in found.items() if x is not None} | numbers


def arguments(problem: Problem, dtype: torch.dtype, padding: int = 0) -> dict[str, simt.Argument]:
    """What the emulation's entries are given."""
    pattern, options = problem.pattern, problem.options
    given: dict[str, simt.Argument] = {
        name: storage(x, padding) for name, x in zip("qkv", problem.tensors(dtype), strict=True)
    }
    given |= {"dtype": arrays.NAMES[dtype], "D": problem.shape[4], "pattern": pattern.kind, "causal": pattern.causal}
    if pattern.kind == "s2":
        given |= {"group_size": pattern.group_size, "sinks": pattern.sinks}
    elif pattern.kind == "window":
        given |= {"window": pattern.size, "sinks": pattern.sinks}
    elif pattern.kind == "tiles":
        assert pattern.tile_table is not None
        given |= {"tiles": pattern.tile_table.numpy().astype(np.int32), "tile_size": pattern.tile_size}
    elif pattern.kind == "selected":
        assert pattern.selection is not None
        given |= {"window": pattern.size, "sinks": pattern.sinks} | codes(pattern.selection)
    layout: TokenLayout | None = options.get("layout")
    if layout is not None:
        given |= {"query_layout": layout.queries.int().numpy(), "key_layout": layout.keys.int().numpy()}
    for name in ("softcap", "scale", "model_window"):
        if options.get(name) is not None:
            given[name] = options[name]
    return given


def run(
    problem: Problem,
    dtype: torch.dtype,
    *,
    backward: bool = True,
    padding: int = 0,
    spread: int = 0,
    build: simt.Build = "plain",
    seed: int = 0,
    mutant: int = 0,
) -> Outcome:
    """Forward, and backward of the fixed functional that `tests.ops.attention_cases` uses. Rows have `padding` more
    elements, or are `spread` elements apart."""
    given = arguments(problem, dtype, padding) | {"spread": spread}
    D = problem.shape[4]
    forward = simt.run("attention_fwd", given, build=build, seed=seed, mutant=mutant)
    values = {"out": tensor(forward["out"], dtype, D), "lse": torch.from_numpy(forward["lse"])}
    if not backward:
        return Outcome(values, forward, None)
    weight, lse_weight = functional(problem.tensors(dtype), torch.float32)
    given |= {"out": forward["out"], "lse": forward["lse"], "dout": storage(weight.to(dtype), padding)}
    given["dlse"] = lse_weight.numpy()
    result = simt.run("attention_bwd", given, build=build, seed=seed, mutant=mutant)
    values |= {name: tensor(result[name], dtype, D) for name in ("dq", "dk", "dv")}
    return Outcome(values, forward, result)


def assert_correct(problem: Problem, dtype: torch.dtype, outcome: Outcome, label: str) -> None:
    """No reports, every element written, and the error law of the project against the float64 reference."""
    assert not outcome.reports, "\n".join(map(str, outcome.reports))
    tensors = problem.tensors(dtype)
    exact = oracle(tensors, torch.float64, problem.pattern, **problem.options)
    rounded = torchs(tensors, problem.pattern, **problem.options)
    for name, value in outcome.values.items():
        assert_error_bound(f"{label} {name}", value, rounded[name], exact[name], DIRECTIONS[name])
