"""CUDA attention over kept keys and small listed tiles, in the CPU emulation and as PTX."""

from __future__ import annotations

import pytest
import torch

from longspan import ops
from longspan.ops import AttentionPattern
from tests.cuda import simt
from tests.cuda.attention_runs import Problem, arguments, assert_correct, run, tensor
from tests.cuda.replay import replay
from tests.laws import FORWARD, assert_error_bound
from tests.ops.attention_cases import oracle, torchs
from tests.ops.pq_cases import Choice
from tests.ops.pq_cases import Problem as Vectors
from tests.ops.test_attention_selected import random_table

SEEDS = (0, 1, 2, 3)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
P = AttentionPattern


class Selected(Problem):
    """Attention over the keys that a choice keeps; they are chosen by what float32 vectors round to in the dtype."""

    choice: Choice

    def tensors(self, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        q, k, _ = self.choice.problem.tensors(dtype)
        v = torch.randn(k.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(dtype)
        return q, k, v


def selected(choice: Choice, dtype: torch.dtype, **options: float) -> Selected:
    """The problem of a choice, in the dtype that its thresholds are of."""
    p = choice.problem
    q, _, codebook = p.tensors(dtype)
    who = choice.who(torch.float32)
    if choice.scorer == "adc":  # float16 is not of the CPU: what it rounds to
        who |= {"q": q.float() if dtype == torch.float16 else q, "codebook": codebook}
    selection = ops.topl_threshold(budget=choice.budget, **who, **choice.where())
    given = {"layout": choice.layout(), "model_window": choice.model_window, **options}
    problem = Selected((p.B, p.H, p.K, p.T, p.D), P.selected(selection, choice.causal), p.S, given)
    object.__setattr__(problem, "choice", choice)
    return problem


def vectors(**sizes: int) -> Vectors:
    return Vectors(**({"B": 1, "H": 2, "K": 1, "T": 90, "D": 64, "subspaces": 8, "groups": 1} | sizes))


CHOICES = {
    "adc": Choice(vectors(), 12, window=3, sinks=2),
    "match": Choice(vectors(), 12, "match"),
    "D 80": Choice(vectors(D=80, subspaces=10, T=40), 9, window=2),
    "D 256": Choice(vectors(D=256, subspaces=16, T=40, H=1), 9),
    "bytes": Choice(vectors(D=32, subspaces=4, codewords=20, T=50), 9, sinks=1),
    "documents": Choice(vectors(T=100, H=4, K=2, groups=2), 10, documents=(5, 50, 0, 45), window=3, sinks=2),
    "a cache": Choice(vectors(T=9, S=90, B=2), 12, window=3, sinks=1),
}
TILES = {
    "tiles of 64": Problem((2, 4, 2, 200, 64), P.tiles(random_table(2, 2, 4, 0.4), 64)),
    "tiles of 64, D 128": Problem((1, 2, 1, 150, 128), P.tiles(random_table(1, 1, 3, 0.4), 64)),
    "tiles of 64, D 20": Problem((1, 2, 1, 150, 20), P.tiles(random_table(1, 2, 3, 0.5), 64)),
    "tiles of 192": Problem((1, 1, 1, 400, 16), P.tiles(random_table(1, 1, 3, 0.3), 192)),
}


def problem_of(name: str, dtype: torch.dtype) -> Problem:
    return TILES[name] if name in TILES else selected(CHOICES[name], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [*CHOICES, *TILES])
def test_right_and_the_same_in_every_schedule(name: str, dtype: torch.dtype) -> None:
    problem = problem_of(name, dtype)
    first = run(problem, dtype)
    assert_correct(problem, dtype, first, name)
    assert first.unwritten == 0
    for seed in SEEDS[1:]:
        other = run(problem, dtype, seed=seed)
        assert not other.reports, "\n".join(map(str, other.reports))
        for key, value in first.values.items():
            assert torch.equal(value, other.values[key]), f"{key} differs with seed {seed}"
    outcome = run(problem, dtype, build="hooks", seed=1)
    assert not outcome.reports, "\n".join(map(str, outcome.reports))
    assert outcome.unwritten == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_soft_cap(dtype: torch.dtype) -> None:
    problem = selected(CHOICES["adc"], dtype, softcap=2.0)
    assert_correct(problem, dtype, run(problem, dtype), "soft-cap")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rows_that_are_not_aligned(dtype: torch.dtype) -> None:
    tiles = TILES["tiles of 64"]
    assert_correct(tiles, dtype, run(tiles, dtype, padding=1), "tiles")
    with pytest.raises(
        RuntimeError, match="takes 16-bit arrays for pattern 'selected' whose rows all start on 16 bytes"
    ):
        run(selected(CHOICES["adc"], dtype), dtype, padding=1)


@pytest.mark.parametrize(("dtype", "name"), [(torch.bfloat16, "bf16"), (torch.float16, "f16"), (torch.float32, "f32")])
def test_ptx(dtype: torch.dtype, name: str) -> None:
    problem = selected(Choice(vectors(T=70), 9, window=2, sinks=1), dtype)
    given = arguments(problem, dtype)
    sources = ["attention/prepare.cu", "pq/tables.cu", f"attention/fwd_{name}.cu"]
    out = tensor(replay(simt.run("attention_fwd", given, record=True), sources, 1)["out"], dtype, 64)
    tensors = problem.tensors(dtype)
    exact = oracle(tensors, torch.float64, problem.pattern)["out"]
    assert_error_bound("out", out, torchs(tensors, problem.pattern)["out"], exact, FORWARD)


# number: what is wrong. They stand at `simt::mutant`.
MUTANTS = {210: "keys before the cut are kept", 211: "far keys are not kept"}


@pytest.mark.mutants("attention")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_planted_bug_is_seen(mutant: int) -> None:
    problem = selected(Choice(vectors(D=64, subspaces=2, codewords=2), 12, "match"), torch.float32)
    outcome = run(problem, torch.float32, build="hooks", mutant=mutant)
    with pytest.raises(AssertionError):
        assert_correct(problem, torch.float32, outcome, MUTANTS[mutant])
