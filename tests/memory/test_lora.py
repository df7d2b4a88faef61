"""What a linear map with adapters keeps and needs: its input, R numbers a row, and nothing as wide as its output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from longspan.memory import measure
from tests.ops.lora_cases import F32, Problem

BF16 = torch.bfloat16
ROWS, WIDE = 20000, 512
PLAIN = Problem(3000, 64, (96,), (8,), bias=True)
GROUP = Problem(3000, 64, (96, 32, 32), (8, 4, 4), norm="rms")
ADAPTERS = ("lora_a", "lora_b")
FIXED = 12 << 20  # packed blocks of a product and tiles, and with a norm panels of 2048 rows, whatever T is


def leaves(problem: Problem, dtype: torch.dtype, trained: Sequence[str]) -> dict[str, Tensor]:
    """The problem's tensors; those whose names begin as in `trained` require grad."""
    return {n: x.requires_grad_(n.startswith(tuple(trained))) for n, x in problem.tensors(dtype).items()}


def saved_bytes(problem: Problem, dtype: torch.dtype, trained: Sequence[str]) -> tuple[int, bool]:
    """Bytes of the storages that wait for the gradient beside the parameters and x; and whether x is among them."""
    tensors, found = leaves(problem, dtype, trained), {}

    def pack(x: Tensor) -> Tensor:
        found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        ys = problem.call(tensors)
    given = {n: x.untyped_storage().data_ptr() for n, x in tensors.items()}
    del ys
    return sum(size for p, size in found.items() if p not in given.values()), given["x"] in found


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("problem", [PLAIN, GROUP, replace(GROUP, norm="layer"), replace(GROUP, norm="none")])
def test_saved_is_the_input_and_a_few_numbers_a_row(problem: Problem, dropout: float, dtype: torch.dtype) -> None:
    size, has_x = saved_bytes(replace(problem, dropout=dropout), dtype, ADAPTERS)
    numbers = sum(problem.ranks) + {"none": 0, "rms": 1, "layer": 2}[problem.norm]
    assert has_x
    assert size == 4 * problem.T * numbers + (8 * len(problem.N) if dropout else 0)


@pytest.mark.parametrize(
    ("problem", "trained", "kept"),
    [
        (PLAIN, ("x",), False),
        (PLAIN, ("bias", "lora_b"), False),
        (PLAIN, ("lora_a",), True),
        (PLAIN, ("weight",), True),
        (replace(PLAIN, ranks=(0,)), ("x", "bias"), False),
        (replace(PLAIN, ranks=(0,)), ("weight",), True),
        (GROUP, ("x",), True),
    ],
)
def test_the_input_is_kept_only_where_a_gradient_needs_it(problem: Problem, trained: Sequence[str], kept: bool) -> None:
    assert saved_bytes(problem, F32, trained)[1] == kept


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("problem", [PLAIN, GROUP])
def test_what_lives_after_the_forward_is_y_and_what_is_saved(problem: Problem, dropout: float) -> None:
    problem = replace(problem, dropout=dropout)
    tensors = leaves(problem, F32, ADAPTERS)
    with measure() as m:
        ys = problem.call(tensors)
    kept = sum(y.nbytes for y in ys) + 4 * problem.T * (sum(problem.ranks) + problem.normed)
    assert kept <= m.end_bytes <= kept + 256


def transient(problem: Problem, dtype: torch.dtype, trained: Sequence[str], rows: int) -> int:
    """Peak bytes of forward and backward beside the outputs and the gradients that stay."""
    problem = replace(problem, T=rows)
    tensors, dys = leaves(problem, dtype, trained), problem.upstream(dtype)
    wanted = [x for x in tensors.values() if x.requires_grad]
    with measure() as m:
        ys = problem.call(tensors)
        gradients = torch.autograd.grad(ys, wanted, dys)
    return m.peak_bytes - sum(x.nbytes for x in (*ys, *gradients))


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("norm", ["none", "rms", "layer"])
@pytest.mark.parametrize("group", [False, True])
def test_nothing_as_wide_as_the_rows_exists(group: bool, norm: str, dropout: float, dtype: torch.dtype) -> None:
    """Beside y and dx: s, ds, with a bias a copy of s, statistics of rows, and scratch of a fixed size."""
    sizes, ranks = ((96, 32, 32), (8, 4, 4)) if group else ((96,), (8,))
    problem = Problem(0, WIDE, sizes, ranks, bias=True, norm=norm, dropout=dropout)
    bound = 4 * ROWS * (3 * sum(ranks) + 3) + FIXED
    assert bound < ROWS * WIDE * dtype.itemsize  # a copy of the rows would be seen
    assert transient(problem, dtype, ("x", *ADAPTERS), ROWS) <= bound


@pytest.mark.parametrize("problem", [replace(GROUP, C=256, dropout=0.1, bias=True), replace(PLAIN, C=256, dropout=0.1)])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_scratch_does_not_grow_with_the_panels(problem: Problem, dtype: torch.dtype) -> None:
    """Eight panels of rows take what two take, but for s, ds and the statistics of rows."""
    trained = ("x", "weight", "bias", *ADAPTERS)
    few, many = 2 * 2048, 8 * 2048
    growth = transient(problem, dtype, trained, many) - transient(problem, dtype, trained, few)
    assert growth <= 4 * (many - few) * (3 * sum(problem.ranks) + 3) + 4096


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_frozen_weight_costs_no_memory(dropout: float) -> None:
    """A weight far larger than all rows: neither its gradient nor a copy of it appears."""
    problem = Problem(16, 1500, (1500,), (4,), bias=True, dropout=dropout)
    tensors = problem.tensors(F32)
    found = transient(problem, F32, ("x", *ADAPTERS), 16)
    blocks = 2 * (16 + 3072 // 2 + 64) * 384 * 4  # of a matrix product (common/gemm.h): its block of columns, twice
    assert found <= blocks + 16 * 1500 * 4 * 8 + 3 * 1500 * 8 * 4 * 4
    assert found < tensors["weight0"].nbytes


def test_the_composition_in_torch_would_not_pass() -> None:
    problem = replace(PLAIN, T=ROWS, C=WIDE, dropout=0.1)
    tensors = leaves(problem, F32, ("x", *ADAPTERS))
    dys = problem.upstream(F32)
    with measure() as m:
        rows = torch.nn.functional.dropout(tensors["x"], 0.1)
        y = torch.nn.functional.linear(tensors["x"], tensors["weight0"], tensors["bias0"])
        y = y + problem.scaling * ((rows @ tensors["lora_a0"].T) @ tensors["lora_b0"].T)
        gradients = torch.autograd.grad(y, [tensors["x"], tensors["lora_a0"], tensors["lora_b0"]], dys)
    bound = 4 * ROWS * (3 * sum(problem.ranks) + 3) + FIXED
    assert m.peak_bytes - y.nbytes - sum(g.nbytes for g in gradients) > 2 * bound
