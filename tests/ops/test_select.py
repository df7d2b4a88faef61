"""Block scores against the float64 reference, and the choice of blocks: laws and bad input."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longspan.memory import measure
from longspan.ops import TokenBlocks, block_score, select_blocks
from tests.laws import FORWARD, assert_error_bound, assert_threads_change_no_bit, opcheck
from tests.ops.select_cases import CASES, Problem

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16


def scores(problem: Problem, dtype: torch.dtype, **options: Any) -> Tensor:
    q, k = problem.tensors(dtype)
    return block_score(q, k, problem.blocks(), causal=problem.causal, scale=problem.scale, **options)


@pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_error_bound(name: str, dtype: torch.dtype) -> None:
    problem = CASES[name]
    given_scores = scores(problem, dtype)
    assert given_scores.dtype == (F64 if dtype == F64 else F32)
    exact, rounded = problem.oracle(F64, dtype), problem.oracle(F32, dtype)
    assert_error_bound("scores", given_scores, rounded, exact, FORWARD)


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(0, 90), max_size=4),
    block=st.integers(1, 70),
    heads=st.sampled_from([(1, 1), (4, 1), (6, 3)]),
    D=st.integers(1, 40),
    causal=st.booleans(),
)
def test_any_segments(lengths: list[int], block: int, heads: tuple[int, int], D: int, causal: bool) -> None:
    segments, first = [], 3
    for length in lengths:
        segments.append((first, length))
        first += length + 2
    problem = Problem(first + 5, heads, D, tuple(segments), block, causal)
    assert_error_bound("scores", scores(problem, F32), problem.oracle(F32, F32), problem.oracle(F64, F32), FORWARD)


def test_threads_change_no_bit() -> None:
    problem = CASES["ragged causal"]
    assert_threads_change_no_bit(lambda: {"scores": scores(problem, F32)})


def test_a_permutation_of_heads_changes_nothing_but_rounding() -> None:
    q, k = Problem(heads=(4, 4)).tensors(F64)
    blocks, order = Problem().blocks(), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(block_score(q[:, order], k[:, order], blocks), block_score(q, k, blocks))


def test_degree_one_in_the_queries_and_never_negative() -> None:
    problem = CASES["causal"]
    q, k = problem.tensors(F64)
    once, thrice = (block_score(q * f, k, problem.blocks(), causal=True) for f in (1, 3))
    torch.testing.assert_close(thrice, 3 * once)
    assert (once >= 0).all()


def test_symmetrised_is_symmetric_and_keeps_the_diagonal() -> None:
    problem = CASES["ragged causal"]
    plain, both = scores(problem, F32), scores(problem, F32, symmetrise=True)
    assert torch.equal(both, both.mT)
    assert torch.equal(both.diagonal(dim1=1, dim2=2), plain.diagonal(dim1=1, dim2=2))
    assert torch.equal(both.tril(), plain.tril())  # causal: nothing stands above the diagonal


def test_shared_key_heads_are_repeated_ones() -> None:
    q, k = CASES["nine heads of three"].tensors(F32)
    blocks = CASES["nine heads of three"].blocks()
    assert torch.equal(block_score(q, k, blocks), block_score(q, k.repeat_interleave(3, 1), blocks))


def test_one_huge_pair_decides_its_blocks() -> None:
    problem = Problem(M=256, heads=(2, 2), segments=((0, 256),))
    q, k = (x.clone() for x in problem.tensors(F32))
    q[200] = k[70] = 50
    assert block_score(q, k, problem.blocks())[0].argmax() == 3 * 4 + 1


def test_no_gradient_reaches_the_scores() -> None:
    q, k = (x.requires_grad_() for x in CASES["causal"].tensors(F32))
    assert not block_score(q, k, CASES["causal"].blocks()).requires_grad


def test_nothing_of_the_size_of_pairs_exists() -> None:
    problem = Problem(M=4096, heads=(2, 1), D=16, segments=((0, 4096),))
    q, k = problem.tensors(F32)
    blocks = problem.blocks()
    torch.set_num_threads(2)
    with measure() as live:
        block_score(q, k, blocks)
    assert live.peak_bytes < 4 * (64 * 64 + 2 * (2 * 256 * 16 + 16 * 64 + 80 * 64 * 5 + 64)) + 4096


def test_op_check_and_compile() -> None:
    problem = CASES["ragged documents"]
    q, k = problem.tensors(F32)
    blocks = problem.blocks()
    arguments = (q, k, blocks.starts, blocks.counts, blocks.segments, blocks.most, 0.5, True)
    opcheck(torch.ops.longspan.block_score.default, arguments)
    compiled = torch.compile(
        lambda q, k: block_score(q, k, blocks, symmetrise=True), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(q, k), block_score(q, k, blocks, symmetrise=True))


# ---- the choice ------------------------------------------------------------------------------------------------------


def ids_of(kept: Any) -> list[int]:
    return kept.ids.tolist()


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    ratio=st.floats(0, 1),
    forced=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    seed=st.integers(0, 5),
)
def test_the_best_of_every_segment(sizes: list[int], ratio: float, forced: tuple[int, int], seed: int) -> None:
    """By hand, block by block; few different scores, so that there are ties."""
    blocks = TokenBlocks.of([(100 * s, 4 * n) for s, n in enumerate(sizes)], 1000, 4)
    values = torch.randint(4, (sum(sizes),), generator=torch.Generator().manual_seed(seed)).float()
    kept = select_blocks(values, blocks, keep_ratio=ratio, force_first=forced[0], force_last=forced[1])
    wanted, base = [], 0
    for n in sizes:
        ends = {i for i in range(n) if i < forced[0] or i >= n - forced[1]}
        count = min(n, max(min(n, sum(forced)), 1, math.floor(ratio * n)))
        best = sorted(range(n), key=lambda i: (i not in ends, -values[base + i], i))[:count]
        wanted += sorted(base + i for i in best)
        base += n
    assert ids_of(kept) == wanted
    assert kept.rows.tolist() == [int(blocks.starts[i]) + j for i in wanted for j in range(4)]
    for s in range(len(sizes)):
        first, last = blocks.cu_blocks[s], blocks.cu_blocks[s + 1]
        inside = [i for i in wanted if first <= i < last]
        assert wanted[kept.cu_ids[s] : kept.cu_ids[s + 1]] == inside
        assert kept.cu_rows[s + 1] - kept.cu_rows[s] == 4 * len(inside)


def test_rows_of_a_short_last_block() -> None:
    blocks = TokenBlocks.of([(2, 7), (10, 3)], 13, 4)
    kept = select_blocks(torch.tensor([0.0, 1.0, 2.0]), blocks, keep_ratio=0.5)
    assert ids_of(kept) == [1, 2]
    assert kept.rows.tolist() == [6, 7, 8, 10, 11, 12]
    assert kept.cu_rows.tolist() == [0, 3, 6]


def test_sets_are_nested_in_the_ratio_and_in_the_threshold() -> None:
    blocks = TokenBlocks.even(2, 640, 64)
    values = torch.rand(20, generator=torch.Generator().manual_seed(0))
    for name in ("keep_ratio", "threshold"):
        steps = [i / 10 for i in range(11)]
        sets = [set(ids_of(select_blocks(values, blocks, **{name: step}))) for step in steps]
        for smaller, larger in itertools.pairwise(sets):
            assert smaller <= larger if name == "keep_ratio" else smaller >= larger


def test_a_threshold_is_relative_to_the_segment() -> None:
    blocks = TokenBlocks.even(2, 12, 4)
    values = torch.tensor([1.0, 4.0, 2.0, 10.0, 30.0, 40.0])
    kept = select_blocks(values, blocks, threshold=0.5)
    assert ids_of(kept) == [1, 2, 4, 5]
    assert kept.cu_ids.tolist() == [0, 2, 4]
    assert ids_of(select_blocks(values, blocks, threshold=0.8, force_first=1)) == [0, 1, 3, 5]


def test_samples_one_by_one_or_together() -> None:
    values = torch.rand(12, generator=torch.Generator().manual_seed(1))
    together = select_blocks(values, TokenBlocks.even(3, 256, 64), keep_ratio=0.5)
    for b in range(3):
        alone = select_blocks(values[4 * b : 4 * b + 4], TokenBlocks.even(1, 256, 64), keep_ratio=0.5)
        part = together.rows[together.cu_rows[b] : together.cu_rows[b + 1]]
        assert torch.equal(part, alone.rows + 256 * b)


def test_padding_belongs_to_no_block() -> None:
    mask = torch.ones(3, 10)
    mask[0, :4], mask[1, 7:], mask[2] = 0, 0, 0
    blocks = TokenBlocks.padded(mask, 4)
    assert list(zip(blocks.starts.tolist(), blocks.counts.tolist(), strict=True)) == [(4, 4), (8, 2), (10, 4), (14, 3)]
    assert blocks.cu_blocks == (0, 2, 4, 4)
    assert not blocks.full


def test_documents_have_blocks_of_their_own() -> None:
    blocks = TokenBlocks.packed(torch.tensor([0, 5, 5, 13]), 4)
    assert blocks.starts.tolist() == [0, 4, 5, 9]
    assert blocks.counts.tolist() == [4, 1, 4, 4]
    assert blocks.cu_blocks == (0, 2, 2, 4)


# ---- bad input -------------------------------------------------------------------------------------------------------

Q = torch.zeros(8, 4, 16)
BLOCKS = TokenBlocks.even(1, 8, 4)
BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: block_score(Q[0], Q, BLOCKS), r"q has shape \(4, 16\); it must be \[M, heads, D\]"),
    (lambda: block_score(Q.int(), Q, BLOCKS), "int32"),
    (lambda: block_score(Q, Q[:, :3], BLOCKS), "4 query heads are not a multiple of 3 key heads"),
    (lambda: block_score(Q, Q[:7], BLOCKS), "they must agree in all but the heads"),
    (lambda: block_score(Q, Q.double(), BLOCKS), "they must agree in all but the heads"),
    (lambda: block_score(Q.mT, Q.mT, BLOCKS), "last dimension of q must be contiguous"),
    (lambda: block_score(torch.zeros(8, 1, 257), torch.zeros(8, 1, 257), BLOCKS), "D is 257; allowed: 1 to 256"),
    (lambda: block_score(Q, Q, TokenBlocks.even(1, 9, 4)), "the blocks are of 9 rows on cpu; q has 8"),
    (lambda: block_score(Q, Q, BLOCKS, scale=-1.0), "scale is -1.0; it must be finite and not negative"),
    (lambda: TokenBlocks.even(1, 8, 257), "block is 257; allowed: 1 to 256"),
    (lambda: TokenBlocks.of([(4, 5)], 8), "a segment has 5 rows from 4; there are 8"),
    (lambda: TokenBlocks.of([(0, 4), (3, 5)], 8), "row 3 is in two blocks; segments must not overlap"),
    (lambda: BLOCKS.rows_of(torch.tensor([1, 1])), "ids has 1 twice"),
    (lambda: BLOCKS.rows_of(torch.tensor([-1])), "ids has -1; allowed: 0 to 1"),
    (lambda: BLOCKS.gather(Q[:7]), r"x has shape \(7, 4, 16\); it must be \[8, ...\]"),
    (lambda: replace(BLOCKS, starts=BLOCKS.starts + 1), "a block has 4 rows from 5; allowed: 1 to 4 of 8"),
    (lambda: replace(BLOCKS, most=1), "most 1"),
    (lambda: TokenBlocks.padded(torch.tensor([[1, 0, 1]])), "padding lies between the tokens of sample 0"),
    (
        lambda: select_blocks(torch.zeros(3), BLOCKS, keep_ratio=0.5),
        r"scores is torch.float32 \(3,\); it must be .*\(2,\)",
    ),
    (lambda: select_blocks(torch.zeros(2), BLOCKS), "give exactly one of them"),
    (lambda: select_blocks(torch.zeros(2), BLOCKS, keep_ratio=0.5, threshold=0.5), "give exactly one of them"),
    (lambda: select_blocks(torch.zeros(2), BLOCKS, keep_ratio=1.5), "keep_ratio is 1.5; allowed: 0 to 1"),
    (lambda: select_blocks(torch.zeros(2), BLOCKS, threshold=math.nan), "threshold is nan; it must be finite"),
    (lambda: select_blocks(torch.zeros(2), BLOCKS, keep_ratio=1, force_last=-1), "force_last is -1"),
    (lambda: select_blocks(torch.zeros(2), BLOCKS, keep_ratio=1, force_first=2**31), "force_first is 2147483648"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
