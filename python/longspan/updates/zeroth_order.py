"""Optimizers that need losses only: MeZO (Malladi et al. 2023) and Evolution Strategies (Salimans et al. 2017)."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from longspan import ops
from longspan.registry import choose
from longspan.updates.forward_only import DISTRIBUTIONS, RESTORE
from longspan.updates.state import keep_state_dtypes

Metric = Callable[[], Tensor | float]


class ShadowOptimizer(torch.optim.Optimizer):
    """Moves weights along noise that is made from seeds and never stored.

    restore "exact": float32 masters in the state are read only while the parameters, their shadow, are perturbed, so
    the weights come back bit for bit, and bfloat16 loses no small step; 4 bytes a weight. "in_place": nothing is kept,
    noise is added and taken away again, which rounds (of float32 some 1e-8); refused for narrower parameters, where the
    drift is larger than the step.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        weight_decay: float,
        *,
        restore: str = "exact",
        distribution: str = "gaussian",
        seed: int = 0,
    ) -> None:
        if lr < 0 or weight_decay < 0:
            raise ValueError(f"lr is {lr} and weight_decay {weight_decay}; they must not be negative")
        self.restore = choose("restore", restore, RESTORE)
        self.distribution = choose("distribution", distribution, DISTRIBUTIONS)
        self.seed = seed
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "step": 0})
        self.targets: list[Tensor] = []
        self._groups: list[int] = []  # of the targets
        for number, group in enumerate(self.param_groups):
            for p in group["params"]:
                if not p.requires_grad:
                    continue
                if self.restore == "in_place" and p.dtype != torch.float32:
                    raise ValueError(f"restore in_place drifts by more than a step in {p.dtype}; give restore exact")
                self.targets.append(p)
                self._groups.append(number)
        if not self.targets:
            raise ValueError(f"{type(self).__name__}: no parameter requires grad, so nothing would move")
        if self.restore == "exact":
            for p in self.targets:
                self.state[p]["master"] = p.detach().float().clone(memory_format=torch.contiguous_format)

    @property
    def masters(self) -> list[Tensor]:
        """What the shadow is made from."""
        return [self.state[p]["master"] for p in self.targets]

    def _move(self, scale: float, seed: int) -> None:
        """The parameters at scale times the noise of a seed from where they rest."""
        sources = self.masters if self.restore == "exact" else None
        ops.perturb_(self.targets, scale, seed, self._step_number(), sources=sources, distribution=self.distribution)

    def _return(self, scale: float, seed: int) -> None:
        if self.restore == "in_place":
            self._move(-scale, seed)
        else:
            self._copy_masters()

    def _copy_masters(self) -> None:
        for p, master in zip(self.targets, self.masters, strict=True):
            p.copy_(master)

    @torch.no_grad()
    def measured(self, metric: Metric, scale: float, seed: int) -> float:
        """The metric at scale times the noise of a seed; the parameters are as before afterwards."""
        self._move(scale, seed)
        try:
            return float(metric())
        finally:
            self._return(scale, seed)

    def _update(self, coefficients: Sequence[float], seeds: Sequence[int], alphas: Sequence[float]) -> None:
        """es_update_ of every group, whose decay is lr weight_decay; a tensor keeps its number, and so its noise."""
        exact = self.restore == "exact"
        moved = self.masters if exact else self.targets
        for number, (group, alpha) in enumerate(zip(self.param_groups, alphas, strict=True)):
            own = [i for i, belongs in enumerate(self._groups) if belongs == number]
            if own:
                ops.es_update_(
                    [moved[i] for i in own],
                    coefficients,
                    seeds,
                    self._step_number(),
                    alpha=alpha,
                    decay=group["lr"] * group["weight_decay"],
                    copies=[self.targets[i] for i in own] if exact else None,
                    tensor_ids=own,
                    distribution=self.distribution,
                )

    def _step_number(self) -> int:
        return int(self.param_groups[0]["step"])

    def _finish(self) -> None:
        for group in self.param_groups:
            group["step"] += 1

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's; the parameters become the rounded masters."""
        super().load_state_dict(state_dict)
        keep_state_dtypes(self, state_dict)
        if self.restore == "exact":
            self._copy_masters()


class MeZO(ShadowOptimizer):
    """Steps along one direction by the difference of two losses (Malladi et al. 2023, arXiv 2305.17333, algorithm 1).

        g = (loss(w + eps z) - loss(w - eps z)) / (2 eps);   w = (1 - lr weight_decay) w - lr g z

    Two forward passes, no gradient: memory is that of inference, and of the masters where `restore` is exact. The loss
    may be any number. samples: directions a step, whose estimates are averaged; 2 samples forwards.

    A step: `optimizer.step(closure)`, where the closure gives the loss and runs without autograd. With micro-batches
    call `estimate` for each, whose losses add up to the loss of the step, and then `step()`.

    history: (step, seed, coefficient, lr) of every direction moved along: `replay` rebuilds the weights from the first.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-6,
        eps: float = 1e-3,
        weight_decay: float = 0.0,
        *,
        samples: int = 1,
        **shared: Any,
    ) -> None:
        if eps <= 0 or samples < 1:
            raise ValueError(f"eps is {eps} and samples {samples}: eps must be above 0 and samples at least 1")
        self.eps, self.samples = eps, samples
        self.history: list[tuple[int, list[int], list[float], list[float]]] = []
        self._sums: list[float] = []
        super().__init__(params, lr, weight_decay, **shared)

    def seeds(self) -> list[int]:
        """Of the directions of the coming step: 62 bits each, of `seed` and the number of the step."""
        rng = random.Random(f"mezo {self.seed} {self._step_number()}")
        return [rng.getrandbits(62) for _ in range(self.samples)]

    @torch.no_grad()
    def estimate(self, metric: Metric) -> float:
        """Adds a micro-batch's differences to the step; returns its loss, the mean over both sides of all samples."""
        self._sums = self._sums or [0.0] * self.samples
        mean = 0.0
        for i, seed in enumerate(self.seeds()):
            above, below = (self.measured(metric, scale, seed) for scale in (self.eps, -self.eps))
            self._sums[i] += (above - below) / (2 * self.eps)
            mean += (above + below) / (2 * self.samples)
        return mean

    @property
    def projected(self) -> list[float]:
        """The estimated directional derivatives of the coming step."""
        return list(self._sums)

    def prepare(self) -> Tensor:
        """The root mean square of `projected`, which trainers log as the gradient norm."""
        return torch.tensor(self._sums or [0.0], dtype=torch.float64).square().mean().sqrt()

    @torch.no_grad()
    def step(self, closure: Metric | None = None) -> Any:
        """Moves; raises FloatingPointError if a loss was not finite: nothing has changed then."""
        loss = None if closure is None else self.estimate(closure)
        sums, self._sums = self._sums, []
        if not sums:
            raise ValueError("MeZO.step needs a closure, or estimate() before it")
        if not all(math.isfinite(x) for x in sums):
            raise FloatingPointError(f"the projected gradient of step {self._step_number() + 1} is {sums}")
        coefficients = [x / self.samples for x in sums]
        rates = [float(group["lr"]) for group in self.param_groups]
        seeds = self.seeds()
        self._update(coefficients, seeds, [-rate for rate in rates])
        self.history.append((self._step_number(), seeds, coefficients, rates))
        self._finish()
        return loss

    @torch.no_grad()
    def replay(self, history: Sequence[tuple[int, list[int], list[float], list[float]]]) -> None:
        """Takes the steps of another run's history, from the weights it began with: the same bits, no forward."""
        for step, seeds, coefficients, rates in history:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["step"], group["lr"] = step, rate
            self._update(coefficients, seeds, [-rate for rate in rates])
            self.history.append((step, list(seeds), list(coefficients), list(rates)))
            self._finish()

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with the history."""
        return {**super().state_dict(), "history": list(self.history)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, with the history."""
        given = dict(state_dict)
        self.history = [tuple(each) for each in given.pop("history")]
        super().load_state_dict(given)


class EvolutionStrategies(ShadowOptimizer):
    """Moves along the noise of a population, weighted by normalised rewards (Salimans et al. 2017, arXiv 1703.03864).

        A_n = (R_n - mean R) / (std R + 1e-8);   w = (1 - lr weight_decay) w + lr / N sum_n A_n z_n

    where R_n is the reward at w + sigma z_n; the usual 1 / sigma is part of lr, as Qiu et al. 2025 (arXiv 2509.24372)
    have it. Equal rewards move nothing but by decay. `step(reward)` measures every member; they can be measured
    elsewhere too: `members()` are their seeds, `measured(reward, sigma, seed)` is one, `move(rewards)` the step.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 5e-4,
        sigma: float = 1e-3,
        population: int = 30,
        weight_decay: float = 0.0,
        **shared: Any,
    ) -> None:
        if sigma <= 0 or population < 2:
            raise ValueError(
                f"sigma is {sigma} and population {population}: sigma must be above 0 and the population at least 2"
            )
        self.sigma, self.population = sigma, population
        self._rewards: list[float] = []
        super().__init__(params, lr, weight_decay, **shared)

    def members(self) -> list[int]:
        """The seeds of the coming generation, all different."""
        rng = random.Random(f"evolution {self.seed} {self._step_number()}")
        found: dict[int, None] = {}
        while len(found) < self.population:
            found[rng.getrandbits(62)] = None
        return list(found)

    @torch.no_grad()
    def estimate(self, reward: Metric) -> float:
        """Adds a micro-batch's rewards to the generation; returns the mean over its members."""
        self._rewards = self._rewards or [0.0] * self.population
        mean = 0.0
        for i, seed in enumerate(self.members()):
            one = self.measured(reward, self.sigma, seed)
            self._rewards[i] += one
            mean += one / self.population
        return mean

    @torch.no_grad()
    def step(self, closure: Metric | None = None) -> Any:
        """One generation; returns the mean reward."""
        mean = None if closure is None else self.estimate(closure)
        rewards, self._rewards = self._rewards, []
        if not rewards:
            raise ValueError("EvolutionStrategies.step needs a closure that gives the reward, or estimate() before it")
        self.move(rewards)
        return mean

    def prepare(self) -> Tensor:
        """The standard deviation of the rewards so far, which trainers log as the gradient norm."""
        return torch.tensor(self._rewards or [0.0], dtype=torch.float64).std(correction=0)

    @torch.no_grad()
    def move(self, rewards: Sequence[float]) -> None:
        """The step of a generation with these rewards, in the order of `members`; not finite: FloatingPointError."""
        if len(rewards) != self.population:
            raise ValueError(f"{len(rewards)} rewards are given; the population is {self.population}")
        if not all(math.isfinite(x) for x in rewards):
            raise FloatingPointError(f"a reward of generation {self._step_number() + 1} is not finite: {list(rewards)}")
        mean = math.fsum(rewards) / len(rewards)
        deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in rewards) / len(rewards))
        advantages = [(x - mean) / (deviation + 1e-8) for x in rewards]
        if len(set(rewards)) == 1:
            advantages = [0.0] * len(rewards)  # a mean of equal numbers can round
        alphas = [float(group["lr"]) / self.population for group in self.param_groups]
        self._update(advantages, self.members(), alphas)
        self._finish()
