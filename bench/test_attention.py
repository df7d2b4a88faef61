"""Attention on the CPU: ops attention_fwd and attention_bwd through torch and through longspan.kernels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench import attention as rows
from bench.attention import Inputs, Shape
from bench.conftest import Session
from bench.race import Race, exponent, race, roofline
from bench.record import Baseline, Gate, Record, Times
from longspan.ops import AttentionPattern
from longspan.ops.reference import attention as reference

OP, KERNELS, DENSE, MM = "longspan.ops", "longspan.kernels", "sdpa_dense", "mm"
ROOFLINE_TARGET = 0.75
FULL = AttentionPattern.full()


def checked(session: Session, shape: Shape, pattern: AttentionPattern, mode: str) -> Gate:
    """The gate of a row; a red one is recorded and nothing is timed."""
    gate = rows.gate(shape, pattern, session.threads)
    if not gate.passed:
        session.write_red(shape.key(pattern), OP, mode, gate)
        pytest.fail(f"error law broken, not timed: {gate}")
    return gate


def record(
    session: Session,
    result: Race,
    impl: str,
    key: str,
    gate: Gate,
    flops: float,
    targets: dict[str, tuple[str, float]],
    *,
    mode: str = "fwd+bwd",
    memory: dict[str, int] | None = None,
    met: dict[str, bool] | None = None,
) -> Record:
    """Writes one row. targets: words -> (baseline, least ratio); baseline MM compares the share of the roofline."""
    _, product = roofline()
    share = flops / product * result.ratio(MM, impl)
    ratios = {name: result.ratio(name, impl) for name in result.seconds if name not in (impl, MM, OP, KERNELS)}
    met = (met or {}) | {
        f"{words} >= {least:g}": (share if name == MM else ratios[name]) >= least
        for words, (name, least) in targets.items()
    }
    baselines = {name: Baseline(result.median(name), ratio) for name, ratio in ratios.items()}
    row = Record(
        key, impl, mode, gate, Times.of(result.seconds[impl]), flops, share, memory, baselines=baselines, targets=met
    )
    session.write(row)
    return row


def both_routes(
    session: Session,
    benchmark: BenchmarkFixture,
    shape: Shape,
    pattern: AttentionPattern,
    targets: dict[str, tuple[str, float]],
    extra: dict[str, Callable[[], object]] | None = None,
) -> None:
    """Forward + backward through both routes, the dense baseline and the matrix product in the same rounds."""
    gate = checked(session, shape, pattern, "fwd+bwd")
    inputs = Inputs(shape, pattern, session.threads)
    product, _ = roofline()
    competitors = {OP: inputs.op, KERNELS: inputs.pybind, DENSE: inputs.dense, MM: product, **(extra or {})}
    memory = rows.memory(inputs)
    result = race(benchmark, OP, competitors, session.seconds)
    flops = rows.flops(pattern, shape)
    for impl in (OP, KERNELS):
        measured = memory if impl == OP else None
        row = record(session, result, impl, shape.key(pattern), gate, flops, targets, memory=measured)
        benchmark.extra_info[impl] = row.to_json()


@pytest.mark.parametrize("D", [64, 128])
def test_dense_causal(session: Session, benchmark: BenchmarkFixture, D: int) -> None:
    """Dense causal attention against torch's fused one."""
    targets = {"share of mm": (MM, ROOFLINE_TARGET)} | ({"vs dense": (DENSE, 1.25)} if D == 64 else {})
    both_routes(session, benchmark, Shape(4096, D=D), FULL, targets)


@pytest.mark.parametrize("pattern", [FULL, AttentionPattern.window(1024)], ids=repr)
def test_forward_alone(session: Session, benchmark: BenchmarkFixture, pattern: AttentionPattern) -> None:
    """attention_fwd without gradients, as in evaluation, against SDPA and FlexAttention."""
    shape, key_op = Shape(4096), "attention_fwd"
    gate = checked(session, shape, pattern, "fwd")
    inputs = Inputs(shape, pattern, session.threads)
    product, _ = roofline()
    competitors = {
        OP: inputs.forward_op,
        KERNELS: inputs.forward_pybind,
        DENSE: inputs.forward_dense,
        "flex_attention": inputs.flex(),
        MM: product,
    }
    result = race(benchmark, OP, competitors, session.seconds)
    for impl in (OP, KERNELS):
        flops = rows.flops(pattern, shape, backward=False)
        record(session, result, impl, shape.key(pattern, key_op), gate, flops, {}, mode="fwd")


def test_shifted_groups(session: Session, benchmark: BenchmarkFixture) -> None:
    """s2(groups=4) against dense attention of the same length."""
    pattern = AttentionPattern.s2(groups=4).resolve(8192)
    targets = {"share of mm": (MM, ROOFLINE_TARGET), "vs dense": (DENSE, 4.8)}
    both_routes(session, benchmark, Shape(8192), pattern, targets)


def test_compiled_reference(session: Session, benchmark: BenchmarkFixture) -> None:
    """Dense causal attention against torch.compile of the reference, which holds all scores."""
    shape = Shape(2048)
    inputs = Inputs(shape, FULL, session.threads)
    compiled = torch.compile(lambda q, k, v: reference.attention(q, k, v, FULL)[0])

    def compiled_reference() -> object:
        out = compiled(inputs.q, inputs.k, inputs.v)
        return torch.autograd.grad(out, (inputs.q, inputs.k, inputs.v), inputs.dout)

    compiled_reference()  # compiles
    both_routes(session, benchmark, shape, FULL, {}, {"compiled_reference": compiled_reference})


WINDOW_LENGTHS = (4096, 8192, 16384, 32768, 65536)
BOTH_ROUTES_LENGTH = 16384


def test_window_grows_linearly(session: Session, benchmark: BenchmarkFixture) -> None:
    """window(1024) from 4k to 64k: one row a length, the exponent of time over length, and one row without torch."""
    pattern = AttentionPattern.window(1024)
    gate = checked(session, Shape(4096), pattern, "fwd+bwd")
    product, _ = roofline()
    inputs = {T: Inputs(Shape(T), pattern, session.threads) for T in WINDOW_LENGTHS}
    names = {T: f"T={T}" for T in WINDOW_LENGTHS}
    competitors = {names[T]: inputs[T].op for T in reversed(WINDOW_LENGTHS)}
    competitors |= {KERNELS: inputs[BOTH_ROUTES_LENGTH].pybind, MM: product}
    result = race(benchmark, names[WINDOW_LENGTHS[-1]], competitors, session.seconds)
    medians = [result.median(names[T]) for T in WINDOW_LENGTHS]
    slope = exponent(WINDOW_LENGTHS, medians)
    met = {f"time ~ T^{slope:.3f}, exponent <= 1.1": slope <= 1.1}
    for T in WINDOW_LENGTHS:
        one = Race({OP: result.seconds[names[T]], MM: result.seconds[MM]})
        key, flops = Shape(T).key(pattern), rows.flops(pattern, Shape(T))
        record(session, one, OP, key, gate, flops, {}, memory=rows.memory(inputs[T]), met=met)
    one = Race({KERNELS: result.seconds[KERNELS], MM: result.seconds[MM]})
    shape = Shape(BOTH_ROUTES_LENGTH)
    record(session, one, KERNELS, shape.key(pattern), gate, rows.flops(pattern, shape), {})
    benchmark.extra_info["exponent"] = slope
