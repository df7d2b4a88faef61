"""Attention over lists without torch ops, in every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from longspan import kernels
from longspan.ops.reference import list_attention as reference
from tests import machine
from tests.laws import BACKWARD, FORWARD, assert_error_bound
from tests.ops.attention_cases import functional, run
from tests.ops.test_list_attention import SHAPES, problem

FACTORS = {"out": FORWARD, "lse": FORWARD, "dq": BACKWARD, "dk": BACKWARD, "dv": BACKWARD}


@pytest.mark.parametrize("isa", machine.instruction_sets())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_every_instruction_set_keeps_the_error_bound(
    name: str, dtype: torch.dtype, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGSPAN_ISA", isa)
    tensors, lists = problem(name, dtype)
    q, k, v = (x.numpy() for x in tensors)
    numbers = lists.numpy()
    out, lse = kernels.list_attention_fwd(q, k, v, numbers, threads=2)
    starts, rows = kernels.list_transpose(numbers, k.shape[2], threads=2)
    weight, lse_weight = (x.numpy() for x in functional(tensors, torch.from_numpy(lse).dtype))
    dlse = np.where(np.isinf(lse), 0, lse_weight)
    weight = weight.astype(q.dtype)
    grads = kernels.list_attention_bwd(weight, q, k, v, out, lse, numbers, starts, rows, dlse=dlse, threads=2)
    found = dict(zip(FACTORS, (out, lse, *grads), strict=True))
    exact = run(reference.list_attention, tensors, torch.float64, lists)
    rounded = run(reference.list_attention, tensors, torch.float32, lists)
    for key, value in found.items():
        assert_error_bound(f"{name} {key}", torch.from_numpy(value), rounded[key], exact[key], FACTORS[key])


def test_mistakes_are_named() -> None:
    q, lists = np.zeros((1, 2, 4, 8), np.float32), np.zeros((1, 2, 4, 1), np.int32)
    for call, message in (
        (lambda: kernels.list_attention_fwd(q, q[..., :4].copy(), q, lists), "v is float32"),
        (lambda: kernels.list_attention_fwd(q, q, q, lists[:, :1].copy()), "indices must be int32"),
        (lambda: kernels.list_attention_fwd(q, q, q, lists + 4), "slot 0 of list 0 is 4; numbers of 4 keys"),
        (lambda: kernels.list_transpose(lists, -1), "keys must not be negative"),
        (lambda: kernels.list_transpose(lists, 0), "slot 0 of list 0 is 0; numbers of 0 keys"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
