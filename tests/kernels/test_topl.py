"""Kept keys without torch ops: the same integers in every instruction set, and attention over them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from longspan import kernels, ops
from longspan.ops import AttentionPattern
from longspan.ops.reference import topl as reference
from tests import machine
from tests.laws import FORWARD, assert_error_bound
from tests.ops.attention_cases import oracle
from tests.ops.pq_cases import CASES, CHOICES, Choice

SETS = machine.instruction_sets()
F32, F64 = torch.float32, torch.float64


def given(choice: Choice, dtype: torch.dtype) -> dict[str, Any]:
    """What all three kernels take."""
    who = {name: x.numpy() if isinstance(x, torch.Tensor) else x for name, x in choice.who(dtype).items()}
    where = choice.where()
    layout = where.pop("layout")
    where["model_window"] = where["model_window"] or 0
    if layout is not None:
        who |= {"query_layout": layout.queries.numpy(), "key_layout": layout.keys.numpy()}
    return who | where


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("name", CHOICES)
def test_the_same_keys_in_every_instruction_set(
    name: str, dtype: torch.dtype, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = CHOICES[name]
    selection, q = choice.select(dtype)  # by the best instruction set, held to the reference in tests/ops
    monkeypatch.setenv("LONGSPAN_ISA", isa)
    threshold, cut, kept = kernels.topl_threshold(budget=choice.budget, threads=2, **given(choice, dtype))
    for found, wanted in ((threshold, selection.threshold), (cut, selection.cut), (kept, selection.kept)):
        assert np.array_equal(found, wanted.numpy())
    lists = kernels.topl_indices(threshold=threshold, cut=cut, slots=choice.budget, threads=2, **given(choice, dtype))
    assert np.array_equal(lists, reference.topl_indices(choice.oracle(selection, q), choice.budget).numpy())


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("name", CASES)
def test_tables_in_every_instruction_set(name: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSPAN_ISA", isa)
    q, _, codebook = CASES[name].tensors(F32)
    found = kernels.adc_table(q.numpy(), codebook.numpy(), threads=2)
    assert np.array_equal(found, reference.adc_table(q, codebook).numpy())


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("name", ["adc, window and sinks", "match, window and sinks", "documents", "bytes", "long"])
def test_attention_over_kept_keys(name: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSPAN_ISA", isa)
    choice = CHOICES[name]
    selection, _ = choice.select()
    q, k, _ = choice.problem.tensors(F32)
    v = torch.randn(k.shape, generator=torch.Generator().manual_seed(1))
    arguments = given(choice, F32)
    arguments.pop("q", None)
    numbers = {"threshold": selection.threshold.numpy(), "cut": selection.cut.numpy()}
    spec = kernels.AttentionSpec("selected", **arguments, **numbers)
    out, _ = kernels.attention_fwd(q.numpy(), k.numpy(), v.numpy(), spec, threads=2)
    pattern = AttentionPattern.selected(selection)
    options = {"layout": choice.layout()}
    exact, rounded = (oracle((q, k, v), dtype, pattern, **options)["out"] for dtype in (F64, F32))
    assert_error_bound(name, torch.from_numpy(out), rounded, exact, FORWARD)
    ours = ops.attention(q, k, v, pattern, **options)
    if isa == SETS[-1]:
        assert np.array_equal(out, ours.numpy())


def test_mistakes_are_named() -> None:
    codes = np.zeros((1, 2, 6, 1), np.int32)
    q, book = np.zeros((1, 4, 6, 8), np.float32), np.zeros((2, 2, 4, 4), np.float32)
    match = {"query_codes": np.zeros((1, 4, 6, 1), np.int32), "subspaces": 2, "codewords": 4}
    threshold, cut = np.zeros((1, 4, 6), np.int16), np.zeros((1, 4, 6), np.int32)
    for call, message in (
        (lambda: kernels.topl_threshold(codes, 4), "give query_codes, or q"),
        (lambda: kernels.topl_threshold(codes, 4, q=q), "q and codebook go together"),
        (lambda: kernels.topl_threshold(codes, 4, q=q, codebook=book, **match), "give either query_codes"),
        (lambda: kernels.topl_threshold(codes, 0, q=q, codebook=book), "budget is 0"),
        (lambda: kernels.topl_threshold(codes, 4, window=-1, **match), "must not be negative"),
        (
            lambda: kernels.topl_threshold(codes[:, :1].copy(), 4, q=q, codebook=book),
            "groups must divide the key heads",
        ),
        (lambda: kernels.topl_threshold(codes, 4, **match | {"subspaces": 99}), "subspaces are 99"),
        (lambda: kernels.topl_indices(codes, threshold, cut, 4, **match), "threshold is int16"),
        (lambda: kernels.AttentionSpec("selected", key_codes=codes), "needs key_codes, threshold and cut"),
        (
            lambda: kernels.attention_fwd(
                q,
                q[:, :2].copy(),
                q[:, :2].copy(),
                kernels.AttentionSpec("selected", key_codes=codes, codebook=book, threshold=cut, cut=cut),
            ),
            r"threshold must be int16 \[1, 4, 6\]",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
