"""The keys that queries keep: integers equal to those of sorted scores, thresholds and lists alike, bad input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longspan.memory import measure
from longspan.ops import AttentionPattern, KeySelection, adc_table, topl_indices, topl_threshold
from longspan.ops.reference import topl as reference
from longspan.ops.reference.attention import visible
from tests.laws import assert_threads_change_no_bit, opcheck
from tests.ops.pq_cases import CASES, CHOICES, Choice, Problem, pack

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16


def kept_by(choice: Choice, selection: KeySelection, q: Tensor | None) -> Tensor:
    """bool [B,H,T,S] of threshold and cut."""
    found = reference.selected(selection, q)
    reach, near = choice.masks()
    return reach & (near | found)


@pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_tables_are_those_of_the_definition(name: str, dtype: torch.dtype) -> None:
    q, _, codebook = CASES[name].tensors(dtype)
    assert torch.equal(adc_table(q, codebook), reference.adc_table(q, codebook))


def test_scores_order_keys_as_products_with_their_codewords() -> None:
    """Where 8 bits can tell them apart: a level is at most half a step of each piece."""
    problem = CASES["nine heads of three"]
    q, _, codebook = problem.tensors(F32)
    codes = torch.randint(16, (1, 3, 40, 8), generator=torch.Generator().manual_seed(1))
    selection = KeySelection(pack(codes, 16), *(torch.empty(0) for _ in range(3)), 8, 16, codebook=codebook)
    scores = reference.scores(selection, q).double()
    decoded = torch.stack([codebook[h, torch.arange(8), codes[0, h]].flatten(1) for h in range(3)])
    exact = q.double() @ decoded.repeat_interleave(3, 0).double().mT
    steps = exact - exact[..., :1], scores - scores[..., :1]
    factor = steps[0].abs().amax(-1) / steps[1].abs().amax(-1)
    assert ((steps[0] - steps[1] * factor[..., None]).abs() <= 0.06 * steps[0].abs().amax(-1, keepdim=True)).all()


@pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=str)
@pytest.mark.parametrize("name", CHOICES)
def test_kept_keys_are_those_of_sorted_scores(name: str, dtype: torch.dtype) -> None:
    choice = CHOICES[name]
    selection, q = choice.select(dtype)
    wanted = choice.oracle(selection, q)
    assert torch.equal(kept_by(choice, selection, q), wanted)
    assert torch.equal(selection.kept.long(), wanted.sum(-1))


@pytest.mark.parametrize("name", CHOICES)
def test_lists_and_thresholds_give_the_same_keys(name: str) -> None:
    choice = CHOICES[name]
    selection, q = choice.select()
    wanted = choice.oracle(selection, q)
    where = {key: value for key, value in choice.where().items() if key not in ("window", "sinks")}
    for slots in (int(wanted.sum(-1).max()) + 3, 5, 0):
        lists = topl_indices(selection, slots, q=q, **where)
        assert torch.equal(lists, reference.topl_indices(wanted, slots)), slots


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 2), st.sampled_from([(1, 1), (4, 2), (3, 3)]), st.integers(1, 150)),
    shape=st.tuples(st.integers(1, 12), st.sampled_from([1, 2, 5, 16, 17])),
    budget=st.integers(1, 60),
    near=st.tuples(st.integers(0, 9), st.integers(0, 5)),
    scorer=st.sampled_from(["adc", "match"]),
    seed=st.integers(0, 5),
)
def test_any_sizes(
    sizes: tuple[int, tuple[int, int], int],
    shape: tuple[int, int],
    budget: int,
    near: tuple[int, int],
    scorer: str,
    seed: int,
) -> None:
    B, (H, K), T = sizes
    problem = Problem(B=B, H=H, K=K, T=T, D=2 * shape[0], subspaces=shape[0], codewords=shape[1], groups=1, seed=seed)
    choice = Choice(problem, budget, scorer, *near)
    selection, q = choice.select()
    assert torch.equal(kept_by(choice, selection, q), choice.oracle(selection, q))


@pytest.mark.parametrize("scorer", ["adc", "match"])
def test_sets_grow_with_the_budget(scorer: str) -> None:
    before: Tensor | None = None
    for budget in range(1, 40):
        choice = Choice(CASES["plain"], budget, scorer, window=3, sinks=1)
        now = kept_by(choice, *choice.select())
        assert before is None or (before <= now).all()
        before = now


def test_one_codeword_is_a_window() -> None:
    choice = CHOICES["one codeword"]
    window = AttentionPattern.window(choice.budget)
    kept = kept_by(choice, *choice.select())
    assert torch.equal(kept, visible(window, 4, 80, 80).expand(kept.shape))


def test_the_only_key_with_all_codes_is_kept() -> None:
    codes = torch.ones(1, 1, 64, 6, dtype=torch.int64)
    codes[0, 0, ::2, 0] = 3  # most share five of six codes with the queries
    codes[0, 0, 1::2, 1] = 4
    codes[0, 0, 17] = torch.tensor([7, 7, 7, 7, 7, 7])
    queries = torch.full((1, 1, 64, 6), 7)
    queries[..., 2:] = 1
    queries[0, 0, 40] = 7
    selection = topl_threshold(pack(codes, 16), 1, query_codes=pack(queries, 16), subspaces=6, codewords=16)
    assert topl_indices(selection, 1)[0, 0, 40].tolist() == [17]


def test_packed_documents_are_separate_ones() -> None:
    lengths = (5, 40, 45)
    together = Choice(Problem(B=1, T=90), 12, documents=lengths, window=3, sinks=2)
    selection, q = together.select()
    first = 0
    for length in lengths:
        rows = slice(first, first + length)
        who = together.who(F32)
        alone = topl_threshold(
            who["key_codes"][:, :, rows].contiguous(),
            12,
            q=who["q"][:, :, rows],
            codebook=who["codebook"],
            window=3,
            sinks=2,
        )
        for name in ("threshold", "kept"):
            assert torch.equal(getattr(selection, name)[:, :, rows], getattr(alone, name)), name
        some = (selection.threshold[:, :, rows] >= 0) & (selection.threshold[:, :, rows] < 32767)
        assert torch.equal(selection.cut[:, :, rows][some], alone.cut[some] + first)
        first += length
    assert q is not None


def test_shared_key_heads_are_repeated_ones() -> None:
    choice = CHOICES["nine heads of three"]
    who = choice.who(F32)
    repeated = who | {"key_codes": who["key_codes"].repeat_interleave(3, 1).contiguous()}
    one, other = (topl_threshold(budget=20, window=4, sinks=4, **given) for given in (who, repeated))
    assert torch.equal(one.threshold, other.threshold)
    assert torch.equal(one.cut, other.cut)


def test_threads_change_no_bit() -> None:
    choice = CHOICES["nine heads of three"]

    def run() -> dict[str, Tensor]:
        selection, q = choice.select()
        lists = topl_indices(selection, 20, q=q)
        assert q is not None
        assert selection.codebook is not None
        table = adc_table(q, selection.codebook)
        return {"threshold": selection.threshold, "cut": selection.cut, "lists": lists, "table": table}

    assert_threads_change_no_bit(run)


def test_memory_is_linear() -> None:
    """Ten bytes a query and head are kept, and what a worker needs is of one row."""
    T, H, K, M = 4096, 3, 1, 8
    generator = torch.Generator().manual_seed(0)
    q, codebook = torch.randn(1, H, T, 64, generator=generator), torch.randn(1, M, 16, 8, generator=generator)
    codes = pack(torch.randint(16, (1, K, T, M), generator=generator), 16)
    torch.set_num_threads(2)
    with measure() as live:
        selection = topl_threshold(codes, 512, q=q, codebook=codebook)
    assert live.end_bytes == 10 * H * T
    scratch = (
        K * T * M + 2 * (2 * T + 64 * M * 16 + 2 * T // 64) + 20 * T // 32 + 4 * M * 8 * 16 + 16 * T + 40 * T // 64
    )
    assert live.peak_bytes <= live.end_bytes + 1.05 * scratch + 4096
    del selection


def test_op_check_and_compile() -> None:
    for name in ("adc, window and sinks", "match"):
        choice = CHOICES[name]
        who = choice.who(F32)
        p = choice.problem
        sizes = (who.get("subspaces", 0), who.get("codewords", 0), True, choice.window, choice.sinks, 0)
        first = who.get("q"), who.get("query_codes"), who["key_codes"], who.get("codebook")
        first = tuple(x.contiguous() if isinstance(x, Tensor) else x for x in first)
        ops = torch.ops.longspan
        opcheck(ops.topl_threshold.default, (*first, None, None, 16, *sizes))
        selection, q = choice.select()
        given_ = (selection.threshold, selection.cut, None, None, 16)
        opcheck(ops.topl_indices.default, (*first, *given_, *sizes))
        assert p.T == 70
    q, _, codebook = CASES["plain"].tensors(F32)
    opcheck(torch.ops.longspan.adc_table.default, (q.contiguous(), codebook))

    def whole(q: Tensor, codes: Tensor, codebook: Tensor) -> Tensor:
        selection = topl_threshold(codes, 16, q=q, codebook=codebook, window=2)
        return topl_indices(selection, 16, q=q)

    codes = CHOICES["adc"].who(F32)["key_codes"]
    compiled = torch.compile(whole, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, codes, codebook), whole(q, codes, codebook))


Q, BOOK = torch.zeros(1, 4, 6, 8), torch.zeros(2, 2, 4, 4)
CODES = torch.zeros(1, 2, 6, 1, dtype=torch.int32)
QUERY_CODES = torch.zeros(1, 4, 6, 1, dtype=torch.int32)
MATCH = {"query_codes": QUERY_CODES, "subspaces": 2, "codewords": 4}
ADC = {"q": Q, "codebook": BOOK}
BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: topl_threshold(CODES, 4), "give q and a codebook for asymmetric scores, or query_codes"),
    (lambda: topl_threshold(CODES, 4, **ADC, **MATCH), "and not both"),
    (lambda: topl_threshold(CODES, 4, q=Q), "give q and a codebook"),
    (lambda: topl_threshold(CODES, 0, **ADC), "budget is 0; it must be at least 1"),
    (lambda: topl_threshold(CODES, 4, window=-1, **ADC), "window is -1; it must be at least 0"),
    (lambda: topl_threshold(CODES, 4, sinks=-1, **ADC), "sinks is -1; it must be at least 0"),
    (lambda: topl_threshold(CODES, 4, window=2**32 + 1, **ADC), "window is 4294967297; .* below 2.31"),
    (lambda: topl_threshold(CODES, 4, causal=None, **ADC), "causal is None; allowed: True, False"),
    (lambda: topl_threshold(CODES, 4, sinks=2**31, **ADC), "sinks is 2147483648; .* below 2.31"),
    (lambda: topl_threshold(CODES, 4, model_window=2**32, **ADC), "model_window is 4294967296; .* below 2.31"),
    (lambda: topl_threshold(CODES, 4, **MATCH | {"subspaces": 0}), "subspaces is 0 and codewords 4"),
    (lambda: topl_threshold(CODES.long(), 4, **ADC), r"key_codes are torch.int64"),
    (lambda: topl_threshold(CODES, 4, **MATCH | {"subspaces": 9}), r"take contiguous int32 \[B,heads,tokens,2\]"),
    (lambda: topl_threshold(CODES[:, :1], 4, **ADC), "the 2 groups of the codebook divide the key heads"),
    (lambda: topl_threshold(CODES.expand(2, -1, -1, -1).contiguous(), 4, **ADC), "must agree in batch size"),
    (lambda: topl_threshold(CODES[:, :, :5].contiguous(), 4, **ADC), "6 queries and 5 keys need a layout"),
    (lambda: adc_table(Q[0], BOOK), r"q has shape \(4, 6, 8\)"),
    (lambda: topl_indices(topl_threshold(CODES, 4, **ADC), 4), "give q and a codebook"),
    (lambda: topl_indices(topl_threshold(CODES, 4, **MATCH), -1), "slots is -1"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message for _, message in BAD])
def test_mistakes_are_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_selection_can_be_moved_in_time() -> None:
    """The same vectors give the same selection again: what recomputation relies on."""
    choice = CHOICES["documents"]
    one, two = choice.select()[0], choice.select()[0]
    assert all(torch.equal(getattr(one, name), getattr(two, name)) for name in ("threshold", "cut", "kept"))
    assert replace(one, window=0).window == 0
