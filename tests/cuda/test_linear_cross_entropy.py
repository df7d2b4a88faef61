"""The CUDA form of the segmented loss in the CPU emulation, products by a host loop, against the float64 reference."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from longspan.ops.reference import loss as reference
from tests.cuda import simt
from tests.cuda.arrays import NAMES, bits, tensor
from tests.laws import BACKWARD, FORWARD, assert_error_bound

T, C, V = 21, 24, 75
DTYPES = (torch.float32, torch.bfloat16)

# name: what differs from a plain sum in segments of 8 rows
CASES: dict[str, dict[str, Any]] = {
    "segments": {},
    "one segment": {"segment": 64},
    "bias, soft-cap and scale": {"bias": True, "softcap": 4.0, "scale": 0.7},
    "weights of either sign": {"weights": True},
    "all labels ignored": {"ignored": T},
    "losses": {"per_row": True, "weights": True},
    "hidden alone": {"wanted": ("dhidden",)},
    "loss alone": {"wanted": ()},
}


def problem(options: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor | None]:
    """hidden, weight, bias, labels, weights of a case."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(V, (T,), generator=generator)
    labels[: options.get("ignored", 3)] = -100
    return {
        "hidden": torch.randn(T, C, generator=generator).to(dtype),
        "weight": (0.3 * torch.randn(V, C, generator=generator)).to(dtype),
        "labels": labels,
        "bias": torch.randn(V, generator=generator).to(dtype) if options.get("bias") else None,
        "row_weights": torch.randn(T, generator=generator) if options.get("weights") else None,
    }


def oracle(given: dict[str, Tensor | None], options: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """Losses and gradients of their sum."""
    leaves = {n: x.to(dtype).requires_grad_() for n in ("hidden", "weight", "bias") if (x := given[n]) is not None}
    labels, weights = given["labels"], given["row_weights"]
    assert labels is not None
    losses = reference.segment_linear_cross_entropy(
        leaves["hidden"],
        leaves["weight"],
        labels,
        bias=leaves.get("bias"),
        token_weights=None if weights is None else weights.to(torch.promote_types(dtype, torch.float32)),
        reduction="none",
        logit_softcap=options.get("softcap"),
        logit_scale=options.get("scale", 1.0),
    )
    losses.sum().backward()
    values = {f"d{name}": x.grad if x.grad is not None else torch.zeros_like(x) for name, x in leaves.items()}
    return values | {"losses": losses.detach(), "total": losses.detach().sum().reshape(1)}


def check(name: str, dtype: torch.dtype, run: Callable[[dict[str, Any]], dict[str, np.ndarray]]) -> dict[str, bytes]:
    """Runs a case by `run` and holds what it wrote to the error bound; returns its bytes."""
    options = CASES[name]
    given = problem(options, dtype)
    wanted = options.get("wanted", ("dhidden", "dweight", *(["dbias"] if options.get("bias") else [])))
    arguments: dict[str, Any] = {n: None if x is None else bits(x) for n, x in given.items()}
    arguments |= {"dtype": NAMES[dtype], "segment": options.get("segment", 8)}
    arguments |= {n: options[n] for n in ("softcap", "scale", "per_row") if n in options} | dict.fromkeys(wanted, True)
    exact, rounded = oracle(given, options, torch.float64), oracle(given, options, dtype)
    outputs = run(arguments)
    assert set(outputs) == {*wanted, "losses" if options.get("per_row") else "total"}
    for key, array in outputs.items():
        value = tensor(array, dtype if array.dtype == np.uint16 else torch.float32)
        factor = BACKWARD if key.startswith("d") else FORWARD
        assert_error_bound(f"{name} {key}", value, rounded[key], exact[key], factor)
    return {key: array.tobytes() for key, array in outputs.items()}


def emulated(build: simt.Build, seed: int, given: dict[str, Any]) -> dict[str, np.ndarray]:
    result = simt.run("linear_cross_entropy", given, build=build, seed=seed)
    assert not result.reports, result.text()
    assert sum(result.unwritten.values()) == 0
    return result.outputs


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_error_bound(name: str, dtype: torch.dtype) -> None:
    first = check(name, dtype, functools.partial(emulated, "plain", 0))
    for build, seed in (("plain", 1), ("plain", 2), ("plain", 3), ("hooks", 1)):
        assert check(name, dtype, functools.partial(emulated, build, seed)) == first, f"seed {seed} changes bits"


@pytest.mark.mutants("loss")
def test_a_missing_barrier_in_the_total_is_seen() -> None:
    given = problem({}, torch.float32)
    arguments: dict[str, Any] = {n: None if x is None else bits(x) for n, x in given.items()}
    result = simt.run("linear_cross_entropy", arguments | {"dtype": "float32", "segment": 8}, build="hooks", mutant=46)
    assert result.reports


def test_float16_is_refused() -> None:
    x = np.zeros((2, 4), np.float16)
    labels = np.zeros(2, np.int64)
    with pytest.raises(RuntimeError, match="the loss on CUDA takes float32 and bfloat16"):
        simt.run("linear_cross_entropy", {"hidden": x, "weight": x, "labels": labels, "dtype": "float16", "segment": 1})
