"""Histograms and order statistics of magnitudes without torch ops: against NumPy's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from longspan import kernels
from tests import machine

RANDOM = np.random.default_rng(0)
ARRAYS = [RANDOM.standard_normal(n).astype(np.float32) * s for n, s in ((3001, 1e-3), (70_000, 1.0), (17, 1e30))]
GROUPS = [0, 1, 0]


def upper(x: np.ndarray) -> np.ndarray:
    return (x.view(np.uint32) & 0x7FFFFFFF) >> 16


def of_group(g: int) -> np.ndarray:
    return np.concatenate([x for x, group in zip(ARRAYS, GROUPS, strict=True) if group == g])


@pytest.mark.parametrize("isa", machine.instruction_sets())
def test_histograms_count_and_square_in_every_instruction_set(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSPAN_ISA", isa)
    counts, squares = kernels.magnitude_histogram(ARRAYS, GROUPS, 2, threads=2)
    bins = np.array([np.argmax(each) for each in counts], np.int32)
    low, above = kernels.magnitude_histogram(ARRAYS, GROUPS, 2, bins, threads=2)
    assert np.array_equal(kernels.squared_norms(ARRAYS, GROUPS, 2, threads=2), squares)
    for g in range(2):
        x = of_group(g)
        assert np.array_equal(counts[g], np.bincount(upper(x), minlength=1 << 15))
        within, higher = x[upper(x) == bins[g]], x[upper(x) > bins[g]]
        assert np.array_equal(low[g], np.bincount(within.view(np.uint32) & 0xFFFF, minlength=1 << 16))
        assert np.isclose(squares[g], (x.astype(np.float64) ** 2).sum(), rtol=1e-13)
        assert np.isclose(above[g], (higher.astype(np.float64) ** 2).sum(), rtol=1e-13)


@pytest.mark.parametrize("isa", machine.instruction_sets())
@pytest.mark.parametrize("wanted", [(1, 1), (1500, 70_000), (3018, 35_000)])
def test_the_kth_is_that_of_sorting(wanted: tuple[int, int], isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSPAN_ISA", isa)
    bits, cut, kept, squares = kernels.kth_magnitude(ARRAYS, GROUPS, np.array(wanted), exact=True, threads=2)
    for g, k in enumerate(wanted):
        x = np.abs(of_group(g))
        sorted_ = np.sort(x)[::-1]
        assert bits.view(np.float32)[g] == sorted_[k - 1]
        assert kept[g] == k
        keeps = (x > sorted_[k - 1]) | ((x == sorted_[k - 1]) & (np.arange(len(x)) < cut[g]))
        assert keeps.sum() == k
        for row, of in ((0, x[keeps]), (1, x)):
            assert np.isclose(squares[row, g], (of.astype(np.float64) ** 2).sum(), rtol=1e-13)


def test_bfloat16_and_results_in_arrays_of_the_caller() -> None:
    x = torch.randn(5000).bfloat16()
    bits, kept = np.empty(1, np.int32), np.empty(1, np.int64)
    kernels.kth_magnitude([x], [0], np.array([700]), exact=False, bits=bits, kept=kept)
    threshold = x.abs().float().sort(descending=True).values[699]
    assert bits.view(np.float32)[0] == threshold
    assert kept[0] == (x.abs().float() >= threshold).sum()


X, ONE = np.zeros((4, 3), np.float32), np.array([1])
BAD: dict[str, Callable[[], Any]] = {
    "groups is empty; give at least one array and its group": lambda: kernels.kth_magnitude([], [], ONE, exact=True),
    "tensors has 1 elements; groups has 2": lambda: kernels.kth_magnitude([X], [0, 0], ONE, exact=True),
    "tensors[0] must be contiguous": lambda: kernels.kth_magnitude([X.T], [0], ONE, exact=True),
    "group 3 is out of range; there are 1": lambda: kernels.kth_magnitude([X], [3], ONE, exact=True),
    "groups[0] is 4294967296; allowed: 0 to 2^31 - 1": lambda: kernels.kth_magnitude([X], [2**32], ONE, exact=True),
    "magnitudes of float64 are not ranked; use float32": lambda: kernels.magnitude_histogram(
        [X.astype(np.float64)], [0], 1
    ),
    "bins is int64 [1]; it must be int32 [1]": lambda: kernels.magnitude_histogram([X], [0], 1, ONE),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message: str) -> None:
    with pytest.raises(ValueError) as error:
        BAD[message]()
    assert str(error.value) == message


def test_more_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="13"):
        kernels.kth_magnitude([X], [0], np.array([13]), exact=True)
