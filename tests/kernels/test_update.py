"""Optimiser steps on plain arrays against NumPy: every instruction set and kind of mask, and bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from longspan import kernels, ops
from tests import machine

SHAPES = [(7, 33), (1003,)]
ONES = np.ones(2, np.float32)
SCALARS = ops.adamw_scalars(3, lr=0.01, weight_decay=0.1).numpy()
Arrays = list[list[np.ndarray]]  # params, grads, exp_avgs, exp_avg_sqs


def state() -> Arrays:
    random = np.random.default_rng(1)
    return [
        [make(random.standard_normal(s).astype(np.float32)) for s in SHAPES] for make in (abs, np.negative, abs, abs)
    ]


def keeps() -> tuple[dict[str, Any], list[np.ndarray]]:
    """A mask of each of two kinds, and what they keep."""
    rows = np.array([1, 0, 0, 1, 1, 0, 1], np.uint8)
    bits = np.random.default_rng(2).integers(0, 256, -(-1003 // 8)).astype(np.uint8)
    kept = [np.broadcast_to(rows[:, None] == 1, SHAPES[0]), np.unpackbits(bits, bitorder="little")[:1003] == 1]
    return {"kinds": ["rows", "bits"], "masks": [rows, bits]}, kept


@pytest.mark.parametrize("isa", machine.instruction_sets())
def test_adamw_in_every_instruction_set(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSPAN_ISA", isa)
    now, before = state(), state()
    masked, kept = keeps()
    kernels.masked_adamw_(*now, SCALARS, ONES, mode="freeze", zero_grad=True, threads=2, **masked)
    for i, keep in enumerate(kept):
        p, g, m, v = (each[i] for each in before)
        m, v = (0.9 * m + np.float32(0.1) * g), (0.999 * v + np.float32(0.001) * g * g)
        moved = p * (1 - 0.001) - 0.01 / (1 - 0.9**3) * m / (np.sqrt(v) / np.sqrt(1 - 0.999**3) + 1e-8)
        for found, new, old in ((now[0], moved, before[0]), (now[2], m, before[2]), (now[3], v, before[3])):
            assert np.allclose(found[i][keep], new[keep], rtol=1e-5, atol=1e-7)
            assert np.array_equal(found[i][~keep], old[i][~keep])
        assert not now[1][i].any()


@pytest.mark.parametrize("stochastic_seed", [None, 5])
def test_no_instruction_set_or_thread_changes_a_bit(
    stochastic_seed: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    masked, _ = keeps()
    found = []
    for isa in machine.instruction_sets():
        monkeypatch.setenv("LONGSPAN_ISA", isa)
        for threads in (1, 2, 5):
            params, *others = state()
            half = [torch.from_numpy(x).bfloat16() for x in params]
            kernels.masked_adamw_(
                half, *others, SCALARS, ONES, stochastic_seed=stochastic_seed, threads=threads, **masked
            )
            found.append([*(x.view(torch.int16).numpy() for x in half), *others[1], *others[2]])
    for each in found:
        assert all(np.array_equal(*pair) for pair in zip(each, found[0], strict=True))


def test_thresholds_and_copies() -> None:
    params, grads, *_ = state()
    before, copies = [x.copy() for x in params], [torch.empty(s, dtype=torch.bfloat16) for s in SHAPES]
    bits, cut, *_ = kernels.kth_magnitude(grads, [0, 1], np.array([20, 100]), exact=True)
    kernels.masked_sgd_(
        params,
        grads,
        None,
        np.float32([1, 0, 0]),
        ONES,
        kinds=["threshold"] * 2,
        groups=[0, 1],
        bits=bits,
        cut=cut,
        copies=copies,
    )
    for param, old, grad, copy, k in zip(params, before, grads, copies, (20, 100), strict=True):
        largest = np.abs(grad) >= np.sort(np.abs(grad).ravel())[-k]
        assert np.array_equal(param, np.where(largest, old - grad, old))
        assert torch.equal(copy, torch.from_numpy(param).bfloat16())


X, READ_ONLY, ONE = np.zeros((4, 3), np.float32), np.zeros((4, 3), np.float32), np.ones(1, np.float32)
READ_ONLY.flags.writeable = False
SGD = np.float32([1, 0, 0])
BAD: dict[str, Callable[[], Any]] = {
    "params is empty; give at least one array": lambda: kernels.masked_sgd_([], [], None, SGD, ONE),
    "grads has 2 elements; params has 1": lambda: kernels.masked_sgd_([X], [X, X], None, SGD, ONE),
    "kinds has 2 elements; params has 1": lambda: kernels.masked_sgd_([X], [X], None, SGD, ONE, kinds=["all"] * 2),
    "grads[0] has another shape than its param": lambda: kernels.masked_sgd_([X], [X[1:]], None, SGD, ONE),
    "params[0] is read-only; give an array that can be written": lambda: kernels.masked_sgd_(
        [READ_ONLY], [X], None, SGD, ONE
    ),
    "kind is 'most'; allowed: all, threshold, bits, rows, columns, none": lambda: kernels.masked_sgd_(
        [X], [X], None, SGD, ONE, kinds=["most"]
    ),
    "mode is 'skip'; allowed: grad, update, freeze": lambda: kernels.masked_sgd_([X], [X], None, SGD, ONE, mode="skip"),
    "masks[0] is uint8 [3]; it must be uint8 [4]": lambda: kernels.masked_sgd_(
        [X], [X], None, SGD, ONE, kinds=["rows"], masks=[np.ones(3, np.uint8)]
    ),
    "bits is None; masks by threshold need it": lambda: kernels.masked_sgd_(
        [X], [X], None, SGD, ONE, kinds=["threshold"]
    ),
    "scalars is float32 [3]; it must be float32 [8]": lambda: kernels.masked_adamw_([X], [X], [X], [X], SGD, ONE),
    "factors is float32 [2]; it must be float32 [1]": lambda: kernels.masked_sgd_([X], [X], None, SGD, ONES),
    "exp_avg_sqs[0] is float64 [4, 3]; it must be float32 [4, 3]": lambda: kernels.masked_adamw_(
        [X], [X], [X], [X.astype(np.float64)], SCALARS, ONE
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message: str) -> None:
    with pytest.raises(ValueError) as error:
        BAD[message]()
    assert str(error.value) == message
