"""What the segmented loss needs beside its gradients: one segment of logits and the rows it gathers."""

from __future__ import annotations

import pytest
import torch

from longspan.memory import measure
from longspan.ops import segment_linear_cross_entropy

T, C, V = 1500, 96, 8000
PRODUCT = 2 * (2048 + 3072 + 128) * 384 * 4  # two packed blocks a side of the matrix product (common/gemm.h), float32
LISTS = 64 * 1024  # row numbers, losses


def transient(
    share: float,
    segment: int,
    *,
    train_weight: bool,
    dtype: torch.dtype = torch.float32,
    sizes: tuple[int, int, int] = (T, C, V),
) -> tuple[int, int]:
    """Peak bytes of loss and backward beyond the gradients that stay, and the labels that counted."""
    torch.manual_seed(0)
    tokens, width, vocabulary = sizes
    hidden = torch.randn(tokens, width, dtype=dtype, requires_grad=True)
    weight = (torch.randn(vocabulary, width, dtype=dtype) * width**-0.5).requires_grad_(train_weight)
    labels = torch.randint(vocabulary, (tokens,))
    labels[torch.rand(tokens) >= share] = -100
    wanted = [hidden, weight] if train_weight else [hidden]
    with measure() as m:
        loss = segment_linear_cross_entropy(hidden, weight, labels, segment=segment)
        gradients = torch.autograd.grad(loss, wanted)
    return m.peak_bytes - sum(g.nbytes for g in gradients), int((labels != -100).sum())


@pytest.mark.parametrize("train_weight", [False, True])
@pytest.mark.parametrize("segment", [64, 512, 4096])
@pytest.mark.parametrize("share", [1.0, 0.1])
def test_transient_is_one_segment(share: float, segment: int, train_weight: bool) -> None:
    peak, counted = transient(share, segment, train_weight=train_weight)
    rows = min(segment, counted)
    assert peak <= rows * V * 4 + 2 * rows * C * 4 + PRODUCT + LISTS


def test_transient_at_the_size_of_a_real_vocabulary() -> None:
    tokens, width, vocabulary, segment = 1100, 64, 49152, 1024
    sizes = (tokens, width, vocabulary)
    peak, _ = transient(1.0, segment, train_weight=False, sizes=sizes)
    assert peak <= segment * vocabulary * 8 + tokens * width * 4  # what the op promises
    assert peak <= 1.02 * (segment * vocabulary * 4 + 2 * segment * width * 4 + LISTS)  # what it needs


def test_ignored_rows_need_no_logits() -> None:
    few, counted = transient(0.02, 4096, train_weight=False)
    assert counted < 60
    assert few <= counted * (V + 2 * C) * 4 + PRODUCT + LISTS
    nothing, counted = transient(0.0, 4096, train_weight=False)
    assert counted == 0
    assert nothing <= LISTS


def test_bfloat16_adds_one_float_copy_of_the_weights_gradient() -> None:
    peak, _ = transient(1.0, 256, train_weight=True, dtype=torch.bfloat16)
    assert peak <= 256 * V * 4 + 2 * 256 * C * 4 + V * C * 4 + PRODUCT + LISTS


def test_the_plain_head_would_not_pass() -> None:
    hidden, weight = torch.randn(T, C, requires_grad=True), torch.randn(V, C)
    labels = torch.randint(V, (T,))
    with measure() as m:
        logits = torch.nn.functional.linear(hidden, weight)
        torch.nn.functional.cross_entropy(logits, labels).backward()
    assert m.peak_bytes > 2 * T * V * 4
