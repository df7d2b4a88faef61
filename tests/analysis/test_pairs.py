"""What a choice of keys keeps: figures by hand, and the limits of all keys and of the largest."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from longspan.analysis.pairs import mask_of_blocks, mask_of_lists, measure, visible, weights_of
from longspan.ops import TokenLayout
from longspan.patch.backend import Call

PLAIN = Call("layer", None, None, None, None)


def draw(tokens: int = 30, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 4, tokens, 8, generator=generator), torch.randn(1, 2, tokens, 8, generator=generator)


def largest(q: Tensor, k: Tensor, count: int) -> Tensor:
    seen = visible(q, k, PLAIN)
    kept = []
    for head in range(4):
        best = weights_of(q[0, head], k[0, head // 2], PLAIN, seen).topk(count, 1).indices
        kept.append(torch.zeros_like(seen).scatter_(1, best, True))
    return torch.stack(kept)


def test_the_largest_keys_are_the_best_choice() -> None:
    q, k = draw()
    recent = torch.ones(30, 30, dtype=torch.bool).triu(-4).expand(4, -1, -1)
    found = measure(q, k, PLAIN, {"best": largest(q, k, 5), "window": recent})
    assert found["best"].mass == pytest.approx(found["best"].best)
    assert found["best"].recall == 1
    assert found["window"].best == pytest.approx(found["best"].best)
    assert 0 < found["window"].mass < found["best"].mass
    assert 0 < found["window"].recall < 1


def test_figures_by_hand() -> None:
    """One head whose query weighs its four keys 1, 2, 3 and 4."""
    k = torch.tensor([1.0, 2.0, 3.0, 4.0]).log()[None, None, :, None]
    q = torch.zeros(1, 1, 4, 1)
    q[0, 0, 3] = 1
    kept = torch.zeros(1, 4, 4, dtype=torch.bool)
    kept[0, 3, [0, 3]] = True
    found = measure(q, k, PLAIN, {"two": kept})["two"]
    assert (found.mass, found.best, found.recall) == pytest.approx((0.5, 0.7, 0.5))


def test_rows_that_see_few_keys_do_not_count() -> None:
    q, k = draw(8)
    found = measure(q, k, PLAIN, {"all": torch.ones(4, 8, 8, dtype=torch.bool)})["all"]
    assert math.isnan(found.mass)
    assert measure(q, k, PLAIN, {}) == {}


def test_documents_and_windows_hide() -> None:
    q, k = draw(10)
    packed = Call("layer", TokenLayout.packed(torch.tensor([0, 4, 10])), None, None, 3)
    seen = visible(q, k, packed)
    wanted = [[(i < 4) == (j < 4) and j <= i and i - j < 3 for j in range(10)] for i in range(10)]
    assert seen.tolist() == wanted
    weights = weights_of(q[0, 0], k[0, 0], packed, seen)
    torch.testing.assert_close(weights.sum(1), torch.ones(10))
    assert float(weights[~seen].abs().max()) == 0


def test_lists_and_tables_as_masks() -> None:
    lists = torch.tensor([[[[0, 2], [1, -1], [-1, -1]]]], dtype=torch.int32)
    assert mask_of_lists(lists, 3).int().tolist() == [[[1, 0, 1], [0, 1, 0], [0, 0, 0]]]
    table = torch.tensor([[[[0, -1], [1, -1]]]], dtype=torch.int32)
    mask: Any = mask_of_blocks(table, 3, 4, 2, 2)
    assert mask.int().tolist() == [[[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1]]] * 2
