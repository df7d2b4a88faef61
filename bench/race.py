"""Interleaved rounds: in each, every competitor runs once, so that a noisy machine slows them all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from pytest_benchmark.fixture import BenchmarkFixture

MINIMUM_ROUNDS = 3
MAXIMUM_ROUNDS = 20
PRODUCT = 1536  # rows, columns and depth of the matrix product that gives the roofline
PRODUCTS = 8  # of them in a round, so that they last as long as what they are compared with


@dataclass(frozen=True)
class Race:
    """Seconds of each competitor, one number a round, rounds aligned."""

    seconds: dict[str, list[float]]

    def ratio(self, slow: str, fast: str) -> float:
        """Median over rounds of slow's time / fast's time."""
        return statistics.median(s / f for s, f in zip(self.seconds[slow], self.seconds[fast], strict=True))

    def median(self, name: str) -> float:
        """Median seconds."""
        return statistics.median(self.seconds[name])


def timed(function: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def roofline() -> tuple[Callable[[], object], float]:
    """float32 matrix products and their arithmetic operations."""
    a, b, out = (torch.rand(PRODUCT, PRODUCT) for _ in range(3))

    def products() -> None:
        for _ in range(PRODUCTS):
            torch.mm(a, b, out=out)

    return products, PRODUCTS * 2.0 * PRODUCT**3


COPIED = 64 << 20  # bytes, more than the caches hold


def bandwidth() -> tuple[Callable[[], object], float]:
    """A copy of a large array, and the bytes that it reads and writes."""
    source = torch.rand(COPIED // 4)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2.0 * COPIED


def race(
    benchmark: BenchmarkFixture,
    first: str,
    competitors: dict[str, Callable[[], object]],
    budget: float,
    rest: float = 0.0,
) -> Race:
    """Runs all competitors in turns for about `budget` seconds, after one warm-up round; `first` is the row's own.

    pytest-benchmark times `first`; the others run in the set-up of its rounds, which it does not count.

    Args:
        rest: Seconds of sleep before each competitor, where torch's threads, which spin for a while after each call,
            would take the cores from the pool of the next one.
    """
    round_seconds = sum(timed(function) + rest for function in competitors.values())
    rounds = max(MINIMUM_ROUNDS, min(MAXIMUM_ROUNDS, int(budget / max(round_seconds, 1e-9))))
    others: dict[str, list[float]] = {name: [] for name in competitors if name != first}

    def set_up() -> None:
        for name, seconds in others.items():
            time.sleep(rest)
            seconds.append(timed(competitors[name]))
        time.sleep(rest)

    benchmark.pedantic(competitors[first], setup=set_up, rounds=rounds, iterations=1)
    return Race({first: list(benchmark.stats.stats.data), **others})


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """The slope of log(seconds) over log(sizes) by least squares."""
    x = torch.tensor(sizes, dtype=torch.float64).log()
    y = torch.tensor(seconds, dtype=torch.float64).log()
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())
