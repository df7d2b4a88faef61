"""Perturbation and update by counter-based noise: bits, laws of the noise, schema, compilation, bad input."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from longspan.memory import measure
from longspan.ops import es_update_, perturb_, perturb_noise
from longspan.ops.reference.perturb import noise
from tests import machine
from tests.laws import assert_threads_change_no_bit, opcheck
from tests.ops.perturb_cases import BF16, CASES, F32, F64, Problem

DISTRIBUTIONS = ("gaussian", "rademacher")
MANY = 1 << 20


def updated(problem: Problem, distribution: str, **others: Any) -> list[Tensor]:
    x = problem.tensors()
    lists = (list(problem.coefficients), list(problem.seeds), list(problem.steps))
    decay = 0.0 if problem.decay is None else list(problem.decay)
    options = problem.names() | {"alpha": problem.alpha, "decay": decay, "distribution": distribution}
    es_update_(x, *lists, **options | others)
    return x


def perturbed(problem: Problem, distribution: str) -> list[Tensor]:
    x = problem.tensors()
    names = problem.names() | {"distribution": distribution}
    perturb_(x, problem.scale, problem.seeds[0], problem.steps[0], **names)
    return x


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for ours, exact in zip(found, expected, strict=True):
        assert torch.equal(ours, exact.to(ours.dtype))
        assert torch.equal(ours.signbit(), exact.signbit())


# ---- bits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", machine.instruction_sets())
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("name", CASES)
def test_every_instruction_set_gives_the_bits_of_the_reference(
    name: str, distribution: str, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGSPAN_ISA", isa)
    problem = CASES[name]
    assert_same(perturbed(problem, distribution), problem.perturbed(distribution))
    assert_same(updated(problem, distribution), problem.updated(distribution))


@pytest.mark.parametrize("isa", machine.instruction_sets())
def test_the_bits_of_all_exponents(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough elements to meet words with many leading zeros, or ones."""
    monkeypatch.setenv("LONGSPAN_ISA", isa)
    assert torch.equal(perturb_noise(MANY, 4), noise(MANY, 4, dtype=F32))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("size", [1, 3, 4, 7, 128, 4096])
def test_chunks_and_shards_are_parts_of_the_whole(size: int, distribution: str) -> None:
    count = min(10_000, 40 * size)
    for start in (0, 2**32 * 128 - 50):
        options: dict[str, Any] = {"tensor_id": 9, "distribution": distribution}
        whole = perturb_noise(count, 5, 2, offset=start, **options)
        parts = [perturb_noise(min(size, count - i), 5, 2, offset=start + i, **options) for i in range(0, count, size)]
        assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("shards", [1, 2, 4, 8])
def test_shards_of_rows_take_the_step_of_the_whole(shards: int) -> None:
    whole = torch.randn(48, 37)
    parts = [part.clone() for part in whole.chunk(shards)]
    firsts = [i * parts[0].numel() for i in range(shards)]
    options: dict[str, Any] = {"alpha": 0.1, "decay": 0.01}
    es_update_([whole], [1.0, -2.0], [5, 6], tensor_ids=[3], **options)
    es_update_(parts, [1.0, -2.0], [5, 6], tensor_ids=[3] * shards, offsets=firsts, **options)
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_thread_count_changes_no_bit(distribution: str) -> None:
    problem = Problem((150_001, 7, 70_000), offsets=(5, 0, 1), coefficients=(0.5, 2.0), seeds=(1, 2), steps=(3, 4))
    assert_threads_change_no_bit(lambda: dict(zip("abc", updated(problem, distribution), strict=True)))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("name", ["one member", "halves", "shards"])
def test_an_update_with_one_member_is_a_perturbation(name: str, distribution: str) -> None:
    problem = CASES[name]
    product = float(torch.tensor(-0.013) * torch.tensor(0.77))  # rounded to float32, as alpha * coefficient is
    x, y = problem.tensors(), problem.tensors()
    es_update_(x, [0.77], [3], 5, alpha=-0.013, **problem.names(), distribution=distribution)
    perturb_(y, product, 3, 5, **problem.names(), distribution=distribution)
    assert_same(x, y)


def test_members_of_weight_zero_change_no_bit() -> None:
    problem = CASES["halves"]
    before = problem.tensors()
    x = problem.tensors()
    es_update_(x, [0.0, 0.0], [1, 2], **problem.names())
    assert_same(x, before)
    es_update_(x, [], [], **problem.names())
    assert_same(x, before)
    perturb_(x, 0.0, 1, **problem.names())
    assert_same(x, before)


def test_two_members_with_opposite_advantages() -> None:
    x = torch.zeros(1000)
    es_update_([x], [0.5, -0.5], [1, 2])
    assert torch.equal(x, 0.5 * perturb_noise(1000, 1) - 0.5 * perturb_noise(1000, 2))


def test_copies_are_the_targets_rounded() -> None:
    problem = Problem((1000, 33), ids=(0, 1), offsets=(7, 0))
    copies = [torch.empty(size, dtype=BF16) for size in problem.sizes]
    x = updated(problem, "gaussian", copies=copies)
    assert_same(copies, x)
    assert_same(x, problem.updated("gaussian"))


def test_shadows_come_back_exactly() -> None:
    """Masters are read only: + eps, - eps and 0 are each one rounding of them."""
    masters = [torch.randn(3000), torch.randn(5, 7)]
    kept = [master.clone() for master in masters]
    shadows = [master.to(BF16) for master in masters]
    for scale in (1e-3, -1e-3, 0.0):
        perturb_(shadows, scale, 11, sources=masters)
        for i, (shadow, master) in enumerate(zip(shadows, kept, strict=True)):
            z = noise(master.numel(), 11, tensor_id=i, dtype=F32).view(master.shape)
            assert torch.equal(shadow, (master + torch.tensor(scale) * z).to(BF16))
    assert_same(shadows, [master.to(BF16) for master in kept])
    assert_same(masters, kept)


def test_a_log_of_steps_rebuilds_the_weights() -> None:
    start = torch.randn(500)
    log = [(seed, g) for seed, g in enumerate((0.3, -1.2, 0.8))]
    live, replayed = start.clone(), start.clone()
    for step, (seed, g) in enumerate(log):
        perturb_([live.clone()], 1e-3, seed, step)
        es_update_([live], [g], [seed], step, alpha=-1e-2)
    for step, (seed, g) in enumerate(log):
        es_update_([replayed], [g], [seed], step, alpha=-1e-2)
    assert torch.equal(live, replayed)


def test_numbers_and_tensors_are_the_same() -> None:
    a, b = torch.randn(2, 300).unbind()
    b.copy_(a)
    es_update_([a], [0.1, 2.0], [-1, 2**62], [3, 4], alpha=0.3, decay=0.01)
    tensors = (torch.tensor([0.1, 2.0]), torch.tensor([-1, 2**62]), torch.tensor([3, 4]))
    es_update_([b], *tensors, alpha=torch.tensor(0.3), decay=torch.tensor([0.01]))
    assert torch.equal(a, b)
    perturb_([a], 0.5, -7, 3)
    perturb_([b], torch.tensor(0.5), torch.tensor([-7]), torch.tensor(3 + 2**32))
    assert torch.equal(a, b)


# ---- the noise as random numbers -----------------------------------------------------------------------------------


def test_signs_are_the_published_words() -> None:
    """Philox4x32-10 of counter 0 and key 0 (Random123's kat_vectors), lowest bit first."""
    bits = (perturb_noise(128, 0, distribution="rademacher") < 0).view(4, 32)
    words = (bits * 2 ** torch.arange(32)).sum(1)
    assert [f"{int(word):08x}" for word in words] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]


def test_gaussian_accuracy() -> None:
    z, exact = perturb_noise(MANY, 3), noise(MANY, 3)
    error = (z.double() - exact).abs()
    assert error.max() < 1e-6
    assert error.square().mean().sqrt() < 1e-7
    assert (error / exact.abs().clamp(min=0.01)).max() < 1e-6


@pytest.mark.parametrize("seed", [0, 1, -1])
def test_gaussian_moments_and_distribution(seed: int) -> None:
    z = perturb_noise(MANY, seed).double()
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float(z.pow(power).mean()) - mean) < 5 * math.sqrt(variance / MANY), power
    steps = torch.arange(MANY + 1, dtype=F64) / MANY
    cumulative = torch.special.ndtr(z.sort().values)
    distance = torch.maximum(cumulative - steps[:-1], steps[1:] - cumulative).max()
    assert distance < 1.95 / math.sqrt(MANY)  # Kolmogorov and Smirnov, one in a thousand


def test_signs_are_balanced_and_runs_are_of_all_lengths() -> None:
    z = perturb_noise(MANY, 8, distribution="rademacher")
    assert set(z.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(z.mean())) < 5 / math.sqrt(MANY)
    for lag in (1, 2, 31, 32, 128):
        assert abs(float((z[lag:] * z[:-lag]).mean())) < 5 / math.sqrt(MANY - lag), lag


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_seeds_steps_tensors_and_streams_are_independent(distribution: str) -> None:
    n = 1 << 17
    one = {"seed": 1, "step": 0, "tensor_id": 0, "stream": 0}
    others = [{"seed": 2}, {"seed": 1 + 2**40}, {"step": 4}, {"tensor_id": 1}, {"tensor_id": 2}, {"stream": 1}]
    rows = [perturb_noise(n, **one | other, distribution=distribution) for other in ({}, *others)]  # type: ignore[arg-type]
    for of in (lambda z: z, torch.square) if distribution == "gaussian" else (lambda z: z,):
        correlation = torch.corrcoef(of(torch.stack(rows).double()))
        correlation.fill_diagonal_(0)
        assert correlation.abs().max() < 5 / math.sqrt(n)


def test_neighbours_are_independent() -> None:
    z = perturb_noise(MANY, 6).double()
    for lag in (1, 2, 3, 4):
        for values in (z, z.square() - 1):
            bound = 5 * float(values.square().mean()) / math.sqrt(MANY)
            assert abs(float((values[lag:] * values[:-lag]).mean())) < bound, lag


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_estimate_of_a_linear_loss_is_its_gradient(distribution: str) -> None:
    """E[(a . z) z] = a, and E |(a . z) z|^2 = (d + 2) |a|^2 or d |a|^2."""
    seeds, d = 20_000, 16
    a = torch.linspace(-1, 2, d, dtype=F64)
    draws = torch.stack([perturb_noise(d, seed, distribution=distribution) for seed in range(seeds)]).double()
    estimates = (draws @ a)[:, None] * draws
    deviation = estimates.std(0) / math.sqrt(seeds)
    assert ((estimates.mean(0) - a).abs() < 4 * deviation).all()
    squares = estimates.square().sum(1)
    expected = (d + 2 if distribution == "gaussian" else d) * a.square().sum()
    assert abs(squares.mean() - expected) < 4 * squares.std() / math.sqrt(seeds)


def test_torchs_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    x = [torch.zeros(1000)]
    perturb_(x, 1.0, 1)
    es_update_(x, [1.0, 2.0], [1, 2])
    assert torch.equal(torch.get_rng_state(), before)


# ---- as an op ------------------------------------------------------------------------------------------------------


def test_nothing_is_allocated() -> None:
    x = [torch.randn(1 << 21), torch.randn(1 << 20).to(BF16)]
    for call in (lambda: perturb_(x, 1e-3, 1), lambda: es_update_(x, [1.0] * 4, [1, 2, 3, 4], decay=0.1)):
        with measure() as m:
            call()
        assert m.peak_bytes < 1 << 20


def arguments() -> tuple[Any, ...]:
    one, two = torch.tensor([1.0]), torch.tensor([1.0, 2.0])
    integers = torch.tensor([3, 4])
    x = [torch.randn(3, 5), torch.randn(7).to(BF16)]
    return x, one, two, integers


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_opcheck(distribution: str) -> None:
    x, one, two, integers = arguments()
    rest = ([0, 1], [0, 8], 2, distribution)
    sources = [each.clone() for each in x]
    for given in ([], sources):
        opcheck(torch.ops.longspan.perturb_.default, (x, given, one, integers[:1], integers[1:], *rest))
    for decay, copies in ((None, []), (two, sources)):
        opcheck(torch.ops.longspan.es_update_.default, (x, copies, two, one, decay, integers, integers, *rest))


def test_compiles_without_breaks() -> None:
    def step(a: Tensor, b: Tensor, shadow: Tensor, seed: Tensor, loss: Tensor) -> Tensor:
        perturb_([shadow], 1e-3, seed, sources=[a])
        es_update_([a, b], loss[None], seed[None], alpha=-0.1, decay=[0.1, 0.0])
        return a.sum() + shadow.float().sum()

    results = []
    for call in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(0)
        a, b, shadow = torch.randn(40), torch.randn(3, 4), torch.zeros(40, dtype=BF16)
        total = call(a, b, shadow, torch.tensor(5), torch.tensor(0.3))
        results.append((a, b, shadow, total))
    for eager, compiled in zip(*results, strict=True):
        assert torch.equal(eager, compiled)


def test_parameters_are_changed_without_a_gradient() -> None:
    layer = torch.nn.Linear(4, 3)
    before = layer.weight.detach().clone()
    with torch.no_grad():
        perturb_(list(layer.parameters()), 0.1, 1)
    assert layer.weight.requires_grad
    assert torch.equal(layer.weight, before + torch.tensor(0.1) * noise(12, 1, dtype=F32).view(3, 4))


def test_autograd_knows_that_a_target_was_overwritten() -> None:
    x = torch.randn(4, requires_grad=True)
    for change in (lambda: perturb_([x], 0.1, 1), lambda: es_update_([x], [1.0], [1])):
        squared = x.square()
        with torch.no_grad():
            change()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            squared.sum().backward()


X, H, L = torch.zeros(3, 4), torch.zeros(3, 4, dtype=BF16), torch.zeros(2, dtype=F64)
WATCHED = torch.zeros(3, 4, requires_grad=True)
ALLOWED = "allowed: float32, bfloat16, all on cpu"
BAD: dict[str, Callable[[], Any]] = {
    "perturb_: targets is empty; give at least one tensor": lambda: perturb_([], 1.0, 1),
    f"perturb_: targets[1] is torch.float64 on cpu; {ALLOWED}": lambda: perturb_([X, L], 1.0, 1),
    f"es_update_: targets[0] is torch.float16 on cpu; {ALLOWED}": lambda: es_update_([X.half()], [1.0], [1]),
    "perturb_: targets[0] is not contiguous; its strides are (1, 4)": lambda: perturb_([X.T], 1.0, 1),
    "perturb_: a tensor is among the targets twice; give tied weights once": lambda: perturb_([X, X], 1.0, 1),
    "perturb_: distribution is 'uniform'; allowed: gaussian, rademacher": lambda: perturb_(
        [X], 1.0, 1, distribution="uniform"
    ),
    "perturb_: stream is -1; allowed: 0 to 2^32 - 1": lambda: perturb_([X], 1.0, 1, stream=-1),
    "perturb_: tensor_ids has 2 elements; it needs one for each of 1 targets": lambda: perturb_(
        [X], 1.0, 1, tensor_ids=[1, 2]
    ),
    "perturb_: tensor_ids has 4294967296; allowed: 0 to 2^32 - 1": lambda: perturb_([X], 1.0, 1, tensor_ids=[2**32]),
    "perturb_: offsets has -4; allowed: 0 to 2^62 - 1": lambda: perturb_([X], 1.0, 1, offsets=[-4]),
    "perturb_: sources has 2 tensors; it needs one for each of 1 targets": lambda: perturb_(
        [X], 1.0, 1, sources=[X, H]
    ),
    "perturb_: sources[0] has shape (4, 3); it must be (3, 4), as targets[0]": lambda: perturb_(
        [H], 1.0, 1, sources=[X.T.contiguous()]
    ),
    f"es_update_: copies[0] is torch.float64 on cpu; {ALLOWED}": lambda: es_update_(
        [X], [1.0], [1], copies=[X.double()]
    ),
    "perturb_: scale is nan; it must be finite": lambda: perturb_([X], math.nan, 1),
    "perturb_: scale is torch.float64 (2,) on cpu; it must be torch.float32 with 1 elements on cpu, or numbers": (
        lambda: perturb_([X], L, 1)
    ),
    "perturb_: seed is 9223372036854775808; allowed: -2^63 to 2^63 - 1": lambda: perturb_([X], 1.0, 2**63),
    "perturb_: step is -1; allowed: 0 to 2^32 - 1": lambda: perturb_([X], 1.0, 1, -1),
    "es_update_: seeds has 1 elements; it needs 2": lambda: es_update_([X], [1.0, 2.0], [1]),
    "es_update_: steps has 3 elements; it needs 2": lambda: es_update_([X], [1.0, 2.0], [1, 2], [1, 2, 3]),
    "es_update_: coefficients is inf; it must be finite": lambda: es_update_([X], [math.inf], [1]),
    "es_update_: alpha is -inf; it must be finite": lambda: es_update_([X], [1.0], [1], alpha=-math.inf),
    "es_update_: decay has 2 elements; it needs 1": lambda: es_update_([X], [1.0], [1], decay=[0.1, 0.2]),
    "es_update_: decay is torch.float64 (2,) on cpu; it must be torch.float32 with 1 elements on cpu, or numbers": (
        lambda: es_update_([X], [1.0], [1], decay=L)
    ),
    "perturb_noise: size is -1; it must not be negative": lambda: perturb_noise(-1, 1),
    "perturb_: a tensor of shape (3, 4) requires grad, and this op has no gradient; call it under torch.no_grad()": (
        lambda: perturb_([WATCHED], 1.0, 1)
    ),
    "es_update_: a tensor of shape (3, 4) requires grad, and this op has no gradient; call it under torch.no_grad()": (
        lambda: es_update_([X], [1.0], [1], copies=[WATCHED])
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message: str) -> None:
    with pytest.raises(ValueError) as error:
        BAD[message]()
    assert str(error.value) == message
