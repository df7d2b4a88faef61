"""The project's kernels as nvcc compiles them: the PTX, run on the CPU, keeps the error law that the source keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from longspan.ops import AttentionPattern, TokenLayout
from tests.cuda import attention_runs, simt, test_linear_cross_entropy, test_loss
from tests.cuda.arrays import tensor
from tests.cuda.attention_runs import DIRECTIONS, Problem, arguments, oracle
from tests.cuda.ptx import KernelError
from tests.cuda.replay import Replay, replay
from tests.laws import BACKWARD, FORWARD, assert_error_bound
from tests.ops.attention_cases import functional, torchs

P = AttentionPattern
NAMES = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32"}

# Two tiles and a ragged one in each direction; every head dimension that has tile sizes of its own.
CASES = {
    "D 64 causal": (Problem((1, 2, 1, 70, 64), P.full()), torch.bfloat16),
    "D 64 soft-cap, float16": (Problem((1, 2, 1, 70, 64), P.full(), options={"softcap": 2.0}), torch.float16),
    "D 80 padded to its tile": (Problem((1, 1, 1, 50, 72), P.window(20, sinks=2)), torch.bfloat16),
    "D 128 shifted groups": (Problem((1, 2, 1, 70, 128), P.s2(group_size=20, sinks=1)), torch.bfloat16),
    "D 256": (Problem((1, 1, 1, 40, 256), P.full()), torch.bfloat16),
    "packed documents, float32": (
        Problem((1, 2, 1, 70, 32), P.full(), options={"layout": TokenLayout.packed(torch.tensor([0, 20, 20, 70]))}),
        torch.float32,
    ),
}


def run_attention(problem: Problem, dtype: torch.dtype, seed: int | None, padding: int = 0) -> dict[str, Tensor]:
    """Both directions from PTX; the backward is given the forward's own results."""
    name = NAMES[dtype]
    given = arguments(problem, dtype, padding)
    forward = finished(
        replay(
            simt.run("attention_fwd", given, record=True), ["attention/prepare.cu", f"attention/fwd_{name}.cu"], seed
        )
    )
    weight, lse_weight = functional(problem.tensors(dtype), torch.float32)
    given |= {"out": forward["out"], "lse": forward["lse"], "dlse": lse_weight.numpy()}
    given["dout"] = attention_runs.storage(weight.to(dtype), padding)
    sources = ["attention/prepare.cu", "attention/delta.cu", f"attention/bwd_{name}.cu"]
    backward = finished(replay(simt.run("attention_bwd", given, record=True), sources, seed))
    D = problem.shape[4]
    values = {"out": attention_runs.tensor(forward["out"], dtype, D), "lse": torch.from_numpy(forward["lse"])}
    return values | {name: attention_runs.tensor(backward[name], dtype, D) for name in ("dq", "dk", "dv")}


def finished(done: Replay) -> dict[str, np.ndarray]:
    assert done.unwritten == dict.fromkeys(done.unwritten, 0)
    return done.outputs


@pytest.mark.parametrize("name", CASES)
def test_attention(name: str) -> None:
    problem, dtype = CASES[name]
    tensors = problem.tensors(dtype)
    exact = oracle(tensors, torch.float64, problem.pattern, **problem.options)
    rounded = torchs(tensors, problem.pattern, **problem.options)
    values = run_attention(problem, dtype, None)
    for key, value in values.items():
        assert_error_bound(f"{name} {key}", value, rounded[key], exact[key], DIRECTIONS[key])
    again = run_attention(problem, dtype, 1)
    assert all(torch.equal(value, again[key]) for key, value in values.items()), "another schedule, other bits"


def test_attention_of_rows_that_are_not_aligned() -> None:
    problem, dtype = Problem((1, 1, 1, 40, 36), P.full()), torch.bfloat16
    tensors = problem.tensors(dtype)
    exact = oracle(tensors, torch.float64, problem.pattern)
    rounded = torchs(tensors, problem.pattern)
    given = arguments(problem, dtype, padding=1)
    result = simt.run("attention_fwd", given, record=True)
    done = replay(result, ["attention/prepare.cu", "attention/fwd_bf16.cu"], 1)
    out = attention_runs.tensor(done["out"], dtype, 36)
    assert_error_bound("unaligned", out, rounded["out"], exact["out"], FORWARD)


@pytest.mark.parametrize("name", ["plain", "rows off 16 bytes", "bias bfloat16", "weights of either sign"])
def test_cross_entropy_rows(name: str) -> None:
    given, logits, _, _, _, tokens = test_loss.problem(name)
    exact, rounded = (test_loss.reference(name, dtype) for dtype in (torch.float64, torch.float32))
    done = replay(simt.run("cross_entropy_rows", given, record=True), ["loss/cross_entropy.cu"], 1)
    losses = torch.from_numpy(done["losses"])[tokens]
    assert_error_bound(f"{name} losses", losses, rounded[0], exact[0], FORWARD)
    gradient = tensor(done["gradient"], getattr(torch, given["dtype"]), logits.shape[1])
    assert_error_bound(f"{name} gradient", gradient, rounded[1].to(gradient.dtype), exact[1], BACKWARD)


@pytest.mark.parametrize("dtype", test_linear_cross_entropy.DTYPES, ids=str)
@pytest.mark.parametrize("name", ["segments", "bias, soft-cap and scale", "all labels ignored"])
def test_segmented_loss(name: str, dtype: torch.dtype) -> None:
    """The kernels around the products: sums over segments, columns and rows, and the rounding of gradients."""

    def ptx(given: dict[str, Any]) -> dict[str, np.ndarray]:
        sources = ["loss/linear_cross_entropy_cuda.cu", "loss/cross_entropy.cu"]
        return finished(replay(simt.run("linear_cross_entropy", given, record=True), sources, 1))

    test_linear_cross_entropy.check(name, dtype, ptx)


def test_a_pointer_into_nothing_is_found() -> None:
    problem, dtype = CASES["D 64 causal"]
    result = simt.run("attention_fwd", arguments(problem, dtype), record=True)
    assert result.recording is not None
    shorter = [array for array in result.recording.arrays if array.name != "v"]
    result.recording.arrays[:] = shorter
    with pytest.raises(KernelError, match="out of bounds"):
        replay(result, ["attention/prepare.cu", "attention/fwd_bf16.cu"])
