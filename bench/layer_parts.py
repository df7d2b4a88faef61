"""What the rows of a layer's parts share: the error law of a gate, and the race of an op that memory bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from bench.conftest import Session
from bench.race import Race, bandwidth, race
from bench.record import Baseline, Gate, Record, Times
from longspan.memory import measure

OP, KERNELS, HUGGING_FACE, COPY = "longspan.ops", "longspan.kernels", "hugging_face", "copy"
FACTOR = 3.0  # the error law of gradients: this many times torch's error in the same dtype
Route = Callable[[], tuple[Tensor, ...]]


def error_law(routes: Iterable[Route], torchs: Sequence[Tensor], exact: Sequence[Tensor]) -> Gate:
    """Holds what the routes give to the law: at most FACTOR times torch's error in float32, and eps."""
    passed, worst, worst_torch = True, 0.0, 0.0
    for route in routes:
        for ours, theirs, true in zip(route(), torchs, exact, strict=True):
            error, allowed = float((ours - true).abs().max()), float((theirs - true).abs().max())
            eps = 2 * torch.finfo(torch.float32).eps * max(1.0, float(true.abs().max()))
            passed &= error <= FACTOR * allowed + eps
            worst, worst_torch = max(worst, error), max(worst_torch, allowed)
    return Gate(passed, worst, worst_torch)


def require(session: Session, key: str, checked: Gate) -> None:
    """Records a broken law and fails; such a row is not timed."""
    if not checked.passed:
        session.write_red(key, OP, "fwd+bwd", checked)
        pytest.fail(f"error law broken, not timed: {checked}")


def run_part(
    session: Session,
    benchmark: BenchmarkFixture,
    key: str,
    checked: Gate,
    routes: dict[str, Route],
    moved: float,
    predicted: int,
    baseline: str = HUGGING_FACE,
    least: float = 1.0,
) -> Race:
    """Races an op against a baseline and a copy, and writes a record for each of our routes.

    Args:
        routes: OP, KERNELS and the baseline.
        moved: Bytes that the op has to read and write, for its share of the copy's rate.
        predicted: Peak live bytes by the formula of the op's page.
        least: Times that ours must be as fast as the baseline.
    """
    require(session, key, checked)
    copy, copied = bandwidth()
    result = race(benchmark, OP, {**routes, COPY: copy}, session.seconds)
    with measure() as m:
        routes[OP]()
    memory = {"peak_live_bytes": m.peak_bytes, "predicted_bytes": predicted}
    write_routes(session, benchmark, key, checked, result, None, moved / copied, COPY, memory, least, baseline)
    return result


def write_routes(
    session: Session,
    benchmark: BenchmarkFixture,
    key: str,
    checked: Gate,
    result: Race,
    flops: float | None,
    work: float,
    bound: str,
    memory: dict[str, int],
    least: float,
    baseline: str = HUGGING_FACE,
) -> None:
    """Writes a record for each of our routes.

    Args:
        flops: Of one round of ours, where arithmetic bounds it.
        work: Of ours in units of what a round of the competitor `bound` does: products, or a copy's bytes.
        memory: Of the torch op.
        least: Times that ours must be as fast as the baseline, another competitor.
    """
    for impl in (OP, KERNELS):
        ratio = result.ratio(baseline, impl)
        row = Record(
            key,
            impl,
            "fwd+bwd",
            checked,
            Times.of(result.seconds[impl]),
            flops,
            work * result.ratio(bound, impl),
            memory if impl == OP else None,
            {baseline: Baseline(result.median(baseline), ratio)},
            {f"vs {baseline} >= {least:g}": ratio >= least},
        )
        session.write(row)
        benchmark.extra_info[impl] = row.to_json()
