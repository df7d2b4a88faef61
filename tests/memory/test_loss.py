"""What the segmented loss needs beside its inputs and outputs: one segment of logits, and nothing for ignored rows."""

from __future__ import annotations

import pytest
import torch
from longspan.memory import measure
from longspan.ops import segment_linear_cross_entropy
from torch import Tensor

C, V = 64, 8192
# The packed blocks of the product, (2048 + 3072 + padding) * 384 floats at most, whatever T and V are.
PRODUCT = (2048 + 3072 + 128) * 384 * 4


def peak(T: int, segment: int, counted: int, dtype: torch.dtype = torch.float32, train_head: bool = False) -> int:
    """Bytes of forward and backward beside hidden, weight, labels and the gradients that were asked for."""
    hidden = torch.randn(T, C).to(dtype).requires_grad_()
    weight = torch.randn(V, C).to(dtype).requires_grad_(train_head)
    labels = torch.full((T,), -100)
    labels[torch.randperm(T)[:counted]] = 7
    with measure() as m:
        segment_linear_cross_entropy(hidden, weight, labels, segment=segment).backward()
    gradients = hidden.grad.nbytes + (weight.grad.nbytes if train_head else 0)
    assert m.end_bytes <= gradients + 4096
    return m.peak_bytes - gradients


def rows(T: int) -> int:
    """Per token: label copy, row weight, loss in float64, row number, and what torch's masks take."""
    return 64 * T


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("train_head", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("T", [2048, 8192])
def test_transient_is_one_segment_of_logits(T: int, train_head: bool, dtype: torch.dtype) -> None:
    segment = 1024
    measured = peak(T, segment, T, dtype, train_head)
    logits = segment * V * 4
    sums = V * C * 4 if dtype == torch.bfloat16 and train_head else 0
    assert logits <= measured <= 1.02 * (logits + sums) + PRODUCT + rows(T)
    assert measured <= segment * V * 8


def test_ignored_rows_cost_nothing() -> None:
    T, counted = 8192, 100
    few = peak(T, 4096, counted)
    assert few <= 1.02 * counted * V * 4 + 2 * counted * C * 4 + PRODUCT + rows(T)
    assert peak(T, 4096, 0) <= rows(T)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_saved_for_backward(reduction: str) -> None:
    hidden, weight = torch.randn(512, C, requires_grad=True), torch.randn(V, C, requires_grad=True)
    labels = torch.randint(0, V, (512,))
    saved: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        saved[x.data_ptr()] = x.nbytes
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        segment_linear_cross_entropy(hidden, weight, labels, reduction=reduction, segment=64)
    # The gradients themselves, or what they are computed from; the same size either way.
    assert sum(saved.values()) == hidden.nbytes + weight.nbytes + (labels.nbytes if reduction == "none" else 0)
