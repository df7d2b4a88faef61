"""The quantiser's kernels without torch ops: the same codes in every instruction set, the error law, mistakes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from longspan import kernels
from longspan.ops.reference import pq as reference
from tests import machine
from tests.laws import BACKWARD, FORWARD, assert_error_bound
from tests.ops.pq_cases import CASES, pack

SETS = machine.instruction_sets()
F32, F64 = torch.float32, torch.float64


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_codes_are_the_same_in_every_instruction_set(
    name: str, dtype: torch.dtype, power: int, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGSPAN_ISA", isa)
    _, k, codebook = CASES[name].tensors(dtype)
    found = kernels.pq_encode(k.numpy(), codebook.numpy(), power=power, threads=2)
    assert np.array_equal(found, pack(reference.pq_encode(k, codebook, power), CASES[name].codewords).numpy())


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("name", ["plain", "some chunks", "bytes", "a last piece that is not full"])
def test_loss_and_sums_keep_the_error_law(name: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSPAN_ISA", isa)
    problem = CASES[name]
    _, k, codebook = problem.tensors(F32)
    codes = reference.pq_encode(k, codebook)
    packed = pack(codes, problem.codewords).numpy()
    loss, dcodebook, dz = kernels.pq_loss(k.numpy(), codebook.numpy(), packed, need_dz=True, threads=2)
    results = {}
    for dtype in (F32, F64):
        leaves = k.detach().to(dtype).requires_grad_(), codebook.detach().to(dtype).requires_grad_()
        value = reference.pq_loss(*leaves, codes)
        value.backward()
        results[dtype] = (value.detach()[None], leaves[1].grad, leaves[0].grad)
    assert float(loss[0]) == pytest.approx(float(results[F64][0]), rel=32 * 1.2e-7)
    for ours, torchs, exact in zip((dcodebook, dz), results[F32][1:], results[F64][1:], strict=True):
        assert_error_bound(name, torch.from_numpy(ours), torchs, exact, BACKWARD)
    shape = (problem.groups, problem.subspaces, problem.codewords, problem.width)
    sums, counts = kernels.pq_stats(k.numpy(), packed, *shape, threads=2)
    rounded, wanted = reference.pq_stats(k, codes, shape)
    assert np.array_equal(counts, wanted.numpy())
    assert_error_bound(
        "sums", torch.from_numpy(sums), rounded, reference.pq_stats(k.double(), codes, shape)[0], FORWARD
    )


def test_the_number_of_threads_changes_no_bit() -> None:
    _, k, codebook = (x.numpy() for x in CASES["some chunks"].tensors(F32))
    codes = kernels.pq_encode(k, codebook)
    first: list[Any] = []
    for threads in (1, 2, 5):
        found = [kernels.pq_encode(k, codebook, threads=threads)]
        found += [x for x in kernels.pq_loss(k, codebook, codes, threads=threads) if x is not None]
        found += kernels.pq_stats(k, codes, 1, 2, 16, 4, threads=threads)
        first = first or found
        assert all(np.array_equal(a, b) for a, b in zip(first, found, strict=True))


def test_mistakes_are_named() -> None:
    z, book = np.zeros((1, 2, 3, 8), np.float32), np.zeros((2, 2, 4, 4), np.float32)
    codes = np.zeros((1, 2, 3, 1), np.int32)
    for call, message in (
        (lambda: kernels.pq_encode(z, book.astype(np.float64)), r"codebook must be float32 \[G,M,E,d\]"),
        (lambda: kernels.pq_encode(z, book, power=3), "power is 3; allowed: 1, 2"),
        (lambda: kernels.pq_encode(z, book[:, :1].copy()), "1 x 4 components does not fit the 2 heads of 8"),
        (lambda: kernels.pq_encode(z, np.zeros((1, 2, 300, 4), np.float32)), "codewords 300; 1 to 64 and 1 to 256"),
        (lambda: kernels.pq_loss(z, book, codes[..., :0]), r"codes is int32 \[1, 2, 3, 0\]; it must be int32"),
        (lambda: kernels.pq_loss(z, book, codes + 9), "has code 9 in subspace 0"),
        (lambda: kernels.pq_stats(z, codes, 3, 2, 4, 4), "groups must divide the heads"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
