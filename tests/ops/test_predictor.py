"""The predictor of block scores: the sum that goes inside, pieces and ragged blocks, gradients, bad input."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from longspan.ops import PredictorWeights, TokenBlocks, predictor_pairs, predictor_score

F64 = torch.float64
BLOCK = 8


def weights(columns: int = 12, r1: int = 6, r2: int = 9, dtype: torch.dtype = F64, seed: int = 0) -> PredictorWeights:
    g = torch.Generator().manual_seed(seed)

    def side(extra: int) -> tuple[Tensor, Tensor, Tensor]:
        shapes = (r1, columns), (r2 + extra, r1), (5, r2 + extra)
        a, b, c = (torch.randn(shape, generator=g, dtype=F64).mul(shape[1] ** -0.5).to(dtype) for shape in shapes)
        return a, b, c

    return PredictorWeights(side(0), side(2))


def rows(M: int, C: int, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(M, C, generator=torch.Generator().manual_seed(1), dtype=F64).to(dtype)


SEGMENTS = {
    "one": (((0, 40),), 40),
    "ragged": (((0, 19), (19, 1), (24, 16), (40, 0)), 45),
    "many blocks": (((0, 8 * 70), (8 * 70, 8 * 70)), 8 * 140),
}


def by_definition(x: Tensor, w: PredictorWeights, segments: tuple[tuple[int, int], ...]) -> list[Tensor]:
    """[N,N] of every segment, block by block and token by token."""
    found = []
    for first, count in segments:
        sides: list[Tensor] = []
        for one, two, three in (w.query, w.key):
            made = []
            for begin in range(first, first + count, BLOCK):
                tokens = [(two @ (one @ row).relu()).relu() for row in x[begin : min(begin + BLOCK, first + count)]]
                made.append(three @ torch.stack(tokens).amax(0))
            sides.append(torch.stack(made) if made else x.new_zeros(0, 5))
        found.append(sides[0] @ sides[1].T)
    return found


@pytest.mark.parametrize("C", [1, 12, 20])
@pytest.mark.parametrize("name", SEGMENTS)
def test_pairs_by_definition_and_their_column_sums(name: str, C: int) -> None:
    segments, M = SEGMENTS[name]
    x, w, blocks = rows(M, C), weights(C), TokenBlocks.of(segments, M, 8)
    pairs = predictor_pairs(x, w, blocks)
    assert pairs.shape == (len(segments), blocks.most, blocks.most)
    expected = by_definition(x, w, segments)
    for given, right in zip(pairs, expected, strict=True):
        n = len(right)
        torch.testing.assert_close(given[:n, :n], right, rtol=1e-11, atol=1e-11)
        assert not given[n:].any()
        assert not given[:, n:].any()
    sums = torch.cat([right.sum(0) for right in expected])
    torch.testing.assert_close(predictor_score(x, w, blocks), sums, rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scores_of_narrow_types_are_wide(dtype: torch.dtype) -> None:
    blocks = TokenBlocks.even(2, 40, 8)
    x, w = rows(80, 12, dtype), weights(dtype=dtype)
    wide = PredictorWeights(*(tuple(t.double() for t in side) for side in (w.query, w.key)))  # type: ignore[arg-type]
    given, exact = predictor_score(x, w, blocks), predictor_score(x.double(), wide, blocks)
    assert given.dtype == torch.float32
    assert float((given - exact).abs().max()) <= 8 * torch.finfo(dtype).eps * float(exact.abs().max())


def test_segments_do_not_mix() -> None:
    x, w = rows(80, 12), weights()
    both = predictor_score(x, w, TokenBlocks.even(2, 40, 8))
    alone = [predictor_score(part, w, TokenBlocks.even(1, 40, 8)) for part in x.split(40)]
    torch.testing.assert_close(both, torch.cat(alone), rtol=1e-12, atol=1e-12)


def test_units_that_are_zero_can_go() -> None:
    w, x, blocks = weights(), rows(40, 12), TokenBlocks.even(1, 40, 8)
    one, two, three = w.query
    dead = torch.cat([two, -two.new_ones(2, two.shape[1]) * 100])
    padded = replace(w, query=(one, dead, torch.cat([three, three.new_ones(three.shape[0], 2)], 1)))
    assert torch.equal(predictor_score(x, w, blocks) != 0, predictor_score(x, padded, blocks) != 0)
    torch.testing.assert_close(predictor_score(x, w, blocks), predictor_score(x, padded, blocks), rtol=1e-12, atol=0)


def test_gradients_of_the_weights_and_of_nothing_else() -> None:
    blocks, w = TokenBlocks.of(((0, 11), (11, 5)), 16, 4), weights(7, 4, 5)
    x = rows(16, 7).requires_grad_()
    leaves = tuple(t.requires_grad_() for t in w.tensors)

    def run(*given: Tensor) -> Tensor:
        return predictor_pairs(x, PredictorWeights(given[:3], given[3:]), blocks)  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(run, leaves)
    predictor_pairs(x, w, blocks).sum().backward()
    assert x.grad is None
    assert all(t.grad is not None for t in leaves)
    assert not predictor_score(x, w, blocks).requires_grad


def test_no_blocks() -> None:
    blocks = TokenBlocks.of((), 8, 8)
    assert predictor_score(rows(8, 12), weights(), blocks).shape == (0,)
    assert predictor_pairs(rows(8, 12), weights(), blocks).shape == (0, 0, 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"x": torch.zeros(3, 4, 5)}, "must be floating point"),
        ({"x": torch.zeros(40, 12)}, "a weight is torch.float64"),
        ({"blocks": TokenBlocks.even(1, 48, 8)}, "of 48 rows"),
        ({"w": weights(11)}, r"\[r1, 12\]"),
    ],
)
def test_bad_input(given: dict[str, object], message: str) -> None:
    named = {"x": rows(40, 12), "w": weights(), "blocks": TokenBlocks.even(1, 40, 8)} | given
    for run in (predictor_score, predictor_pairs):
        with pytest.raises(ValueError, match=message):
            run(*(named[name] for name in ("x", "w", "blocks")))  # type: ignore[arg-type]
