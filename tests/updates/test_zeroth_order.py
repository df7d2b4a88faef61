"""MeZO and Evolution Strategies: estimates, exact restores, replays, and what moves nothing."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from longspan import ops
from longspan.memory import measure
from longspan.updates import EvolutionStrategies, MeZO

F64 = torch.float64


class Net(nn.Module):
    """Two layers and a loss; all parameters float32 or bfloat16."""

    def __init__(self, dtype: torch.dtype = torch.float32, width: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(8, width, dtype=dtype), nn.Linear(width, 4, dtype=dtype)
        self.x, self.y = torch.randn(20, 8, dtype=dtype), torch.randn(20, 4, dtype=dtype)

    def loss(self) -> Tensor:
        return (self.two(torch.tanh(self.one(self.x))) - self.y).float().square().mean()


def noise_of(parameters: list[Tensor], seed: int, step: int = 0, distribution: str = "gaussian") -> list[Tensor]:
    z = [torch.zeros(p.shape) for p in parameters]
    ops.perturb_(z, 1.0, seed, step, distribution=distribution)
    return z


def copies(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def assert_same(a: list[Tensor], b: list[Tensor]) -> None:
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_the_estimate_is_the_directional_derivative_with_an_error_of_second_order(distribution: str) -> None:
    model = Net()
    model.loss().backward()
    given = [p.detach().double() for p in model.parameters()]
    errors = []
    for eps in (1e-1, 3e-2, 1e-2):
        optimizer = MeZO(model.parameters(), lr=0.0, eps=eps, distribution=distribution, seed=4)
        z = noise_of(list(model.parameters()), optimizer.seeds()[0], distribution=distribution)
        true = sum(float((p.grad.double() * d).sum()) for p, d in zip(model.parameters(), z, strict=True))  # type: ignore[union-attr]

        def loss64() -> float:  # the perturbed float32 weights, without the loss's own rounding
            w1, b1, w2, b2 = (p.detach().double() for p in model.parameters())
            hidden = torch.tanh(model.x.double() @ w1.T + b1)
            return float((hidden @ w2.T + b2 - model.y.double()).square().mean())

        optimizer.estimate(loss64)
        errors.append(abs(optimizer.projected[0] - true))
    assert_same([p.detach().double() for p in model.parameters()], given)
    assert errors[0] / errors[2] > 40  # a hundred at slope two, ten at slope one


def test_the_estimate_of_a_quadratic_is_exact_at_any_distance() -> None:
    weight = nn.Parameter(torch.randn(50, generator=torch.Generator().manual_seed(1)))
    gradient = 2 * weight.detach().double()
    for eps in (0.5, 0.05):
        optimizer = MeZO([weight], lr=0.0, eps=eps)
        (z,) = noise_of([weight], optimizer.seeds()[0])
        optimizer.estimate(lambda: float(weight.detach().double().square().sum()))
        assert optimizer.projected[0] == pytest.approx(float(gradient @ z.double()), rel=1e-5)


def test_the_mean_estimate_of_a_linear_loss_is_its_gradient() -> None:
    a = torch.tensor([1.0, -2.0, 0.5, 3.0])
    z = torch.cat([ops.perturb_noise(4 * 5000, seed).view(-1, 4) for seed in range(1, 21)])
    estimates, count = (z @ a)[:, None] * z, len(z)
    sums, squares = estimates.sum(0), float(estimates.square().sum())
    deviation = (a.square().sum() + a.square()).sqrt() / count**0.5
    assert ((sums / count - a).abs() < 4 * deviation).all()
    assert squares / count == pytest.approx((4 + 2) * float(a @ a), rel=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_thousand_cycles_change_no_bit(dtype: torch.dtype) -> None:
    model = Net(dtype)
    optimizer = MeZO(model.parameters(), lr=0.0, eps=1e-3)
    before = copies(model)
    for seed in range(1000):
        for scale in (1e-3, -1e-3):
            optimizer.measured(lambda: 0.0, scale, seed)
    assert_same(copies(model), before)


def test_the_shadow_is_the_rounded_sum_of_master_and_noise() -> None:
    model = Net(torch.bfloat16)
    optimizer = MeZO(model.parameters(), lr=1e-3)
    optimizer.step(model.loss)  # so that masters are not what bfloat16 holds
    z = noise_of(optimizer.masters, 5, step=1)
    expected = [(m + 1e-2 * d).bfloat16() for m, d in zip(optimizer.masters, z, strict=True)]
    seen: list[Tensor] = []

    def look() -> float:
        seen.extend(copies(model))
        return 0.0

    optimizer.measured(look, 1e-2, 5)
    assert_same(seen, expected)


def test_groups_do_not_change_a_tensors_noise() -> None:
    results = []
    for split in (False, True):
        model = Net()
        params = list(model.parameters())
        optimizer = MeZO([{"params": params[:1]}, {"params": params[1:]}] if split else params, lr=1e-2)
        optimizer.step(model.loss)
        results.append(copies(model))
    assert_same(*results)


def test_restoring_in_place_only_rounds_and_keeps_nothing() -> None:
    model = Net()
    optimizer = MeZO(model.parameters(), restore="in_place")
    before = copies(model)
    optimizer.estimate(model.loss)
    assert not optimizer.state
    assert max(float((a - b).abs().max()) for a, b in zip(copies(model), before, strict=True)) <= 6e-8
    with pytest.raises(ValueError, match="drifts by more than a step"):
        MeZO(Net(torch.bfloat16).parameters(), restore="in_place")


def test_a_failing_metric_leaves_the_weights_as_they_were() -> None:
    model = Net()
    optimizer = MeZO(model.parameters())
    before = copies(model)

    def broken() -> float:
        raise RuntimeError("no metric")

    with pytest.raises(RuntimeError, match="no metric"):
        optimizer.step(broken)
    assert_same(copies(model), before)
    with pytest.raises(FloatingPointError, match="step 1"):
        optimizer.step(lambda: torch.tensor(torch.nan))
    assert_same(copies(model), before)


def test_steps_lower_the_loss_and_follow_the_seed() -> None:
    results = []
    for seed in (0, 0, 1):
        model = Net()
        start = float(model.loss().detach())
        optimizer = MeZO(model.parameters(), lr=1e-2, samples=4, seed=seed)
        for _ in range(150):
            optimizer.step(model.loss)
        assert float(model.loss().detach()) < 0.9 * start
        results.append(copies(model))
    assert_same(results[0], results[1])
    assert not torch.equal(results[0][0], results[2][0])


def test_a_history_rebuilds_the_weights_bit_for_bit() -> None:
    model, other = Net(torch.bfloat16), Net(torch.bfloat16)
    optimizer = MeZO(model.parameters(), lr=1e-3, weight_decay=0.1, samples=2)
    for step in range(8):
        optimizer.param_groups[0]["lr"] = 1e-3 / (1 + step)
        optimizer.step(model.loss)
    again = MeZO(other.parameters(), weight_decay=0.1)
    again.replay(optimizer.history)
    assert_same(copies(other), copies(model))
    assert_same(again.masters, optimizer.masters)


def test_a_saved_run_goes_on_bit_for_bit() -> None:
    whole, first, second = Net(torch.bfloat16), Net(torch.bfloat16), Net(torch.bfloat16)
    optimizers = [MeZO(model.parameters(), lr=1e-3) for model in (whole, first, second)]
    for _ in range(6):
        optimizers[0].step(whole.loss)
    for _ in range(3):
        optimizers[1].step(first.loss)
    optimizers[2].load_state_dict(optimizers[1].state_dict())
    assert_same(copies(second), copies(first))
    for _ in range(3):
        optimizers[2].step(second.loss)
    assert_same(copies(second), copies(whole))
    assert len(optimizers[2].history) == 6


def test_micro_batches_add_up_to_one_estimate() -> None:
    model = Net()
    whole, parts = MeZO(model.parameters()), MeZO(model.parameters())
    whole.estimate(model.loss)
    x, y = model.x, model.y
    for half in (slice(0, 10), slice(10, 20)):
        model.x, model.y = x[half], y[half]
        parts.estimate(lambda: model.loss() / 2)
    assert parts.projected[0] == pytest.approx(whole.projected[0], rel=1e-2)


def test_nothing_else_is_touched_and_nothing_large_is_allocated() -> None:
    model = Net(width=100_000)
    frozen = model.two.bias.requires_grad_(False)
    optimizer = MeZO(model.parameters(), lr=0.1)
    torch.manual_seed(3)
    random.seed(3)
    state, python = torch.get_rng_state(), random.getstate()
    with measure() as m:
        optimizer.step(lambda: 1.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python
    assert m.peak_bytes < 1 << 16
    assert frozen not in optimizer.state
    with pytest.raises(ValueError, match="nothing would move"):
        MeZO([frozen])


def test_equal_losses_move_nothing_but_decay() -> None:
    model = Net()
    optimizer = MeZO(model.parameters(), lr=0.5, weight_decay=0.25)
    before = copies(model)
    optimizer.step(lambda: 3.0)
    assert_same(copies(model), [x * 0.875 for x in before])


# Evolution strategies.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_equal_rewards_change_no_bit(dtype: torch.dtype) -> None:
    model = Net(dtype)
    before = copies(model)
    EvolutionStrategies(model.parameters(), population=5).step(lambda: 0.1)
    assert_same(copies(model), before)
    # The rounded mean of these is another number.
    EvolutionStrategies(model.parameters(), lr=1e6, population=48).step(lambda: 2.9649612613904752)
    assert_same(copies(model), before)


def test_two_members_with_one_reward_move_along_their_difference() -> None:
    model = Net()
    optimizer = EvolutionStrategies(model.parameters(), lr=0.5, population=2)
    one, two = (noise_of(list(model.parameters()), seed) for seed in optimizer.members())
    before = copies(model)
    optimizer.move([1.0, 0.0])
    for now, old, a, b in zip(copies(model), before, one, two, strict=True):
        torch.testing.assert_close(now, old + 0.5 * (a - b) / 2, rtol=1e-6, atol=1e-6)


def test_members_measured_by_other_workers_give_the_same_bits() -> None:
    alone, shared = Net(), Net()
    whole = EvolutionStrategies(alone.parameters(), population=6)
    workers = [EvolutionStrategies(shared.parameters(), population=6) for _ in range(3)]
    for _ in range(3):
        whole.step(lambda: -alone.loss())
        seeds, reward = workers[0].members(), lambda: -shared.loss()
        rewards = {n: workers[n % 3].measured(reward, workers[0].sigma, seeds[n]) for n in reversed(range(6))}
        states = []
        for worker in workers:  # each has the weights; here they share a model, so each begins from the same
            start = [x.clone() for x in worker.masters]
            worker.move([rewards[n] for n in range(6)])
            states.append(copies(shared))
            assert any(not torch.equal(a, b) for a, b in zip(start, worker.masters, strict=True))
        assert_same(states[0], states[1])
        assert_same(states[0], states[2])
        assert_same(copies(shared), copies(alone))


def test_a_population_climbs() -> None:
    model = Net()
    start = float(model.loss().detach())
    optimizer = EvolutionStrategies(model.parameters(), lr=2e-2, sigma=1e-2, population=16)
    for _ in range(40):
        optimizer.step(lambda: -model.loss())
    assert float(model.loss().detach()) < 0.9 * start


def test_a_large_population_moves_along_the_gradient() -> None:
    target = torch.linspace(-1, 1, 20)
    weight = nn.Parameter(torch.zeros(20))
    optimizer = EvolutionStrategies([weight], lr=1.0, sigma=1e-2, population=2000)
    optimizer.step(lambda: -(weight.detach() - target).double().square().sum())
    assert torch.cosine_similarity(weight.detach(), target, dim=0) > 0.98


def test_a_pair_of_opposite_members_is_the_step_of_mezo() -> None:
    model, other = Net(), Net()
    mezo = MeZO(model.parameters(), lr=1e-2)
    (seed,) = mezo.seeds()
    mezo.estimate(model.loss)
    (g,) = mezo.projected
    mezo.step()
    targets = [p.data for p in other.parameters()]
    ops.es_update_(targets, [g], [seed], 0, alpha=-1e-2)
    assert_same(targets, copies(model))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: MeZO(p, eps=0.0), "eps must be above 0"),
        (lambda p: MeZO(p, restore="half"), "unknown restore 'half'"),
        (lambda p: MeZO(p, distribution="cauchy"), "unknown distribution 'cauchy'"),
        (lambda p: MeZO(p).step(), "needs a closure, or estimate"),
        (lambda p: EvolutionStrategies(p, population=1), "the population at least 2"),
        (lambda p: EvolutionStrategies(p, population=3).move([1.0]), "1 rewards are given; the population is 3"),
    ],
)
def test_mistakes_are_named(make: Callable[[list[nn.Parameter]], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make([nn.Parameter(torch.ones(3))])
