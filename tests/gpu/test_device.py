"""The cases of the emulation on a real GPU, through the torch ops: `make gpu`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from longspan import ops
from longspan.ops import AttentionPattern
from longspan.ops.reference import loss as reference
from tests.cuda.attention_runs import DIRECTIONS, Problem
from tests.cuda.test_attention import CASES
from tests.laws import BACKWARD, FORWARD, assert_error_bound
from tests.ops.attention_cases import functional, oracle, torchs
from tests.ops.norm_cases import CASES as NORMS
from tests.ops.test_norm import run as run_norm

pytestmark = pytest.mark.gpu
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@pytest.fixture(autouse=True)
def gpu() -> None:
    if not torch.cuda.is_available():
        pytest.fail("torch sees no GPU; these tests need one")


def on_device(pattern: AttentionPattern) -> AttentionPattern:
    """The pattern with its table on the GPU."""
    if pattern.tile_table is None:
        return pattern
    return AttentionPattern.tiles(pattern.tile_table.cuda(), tile_size=pattern.tile_size)


def run(problem: Problem, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Both directions of the fixed functional; results on the CPU."""
    tensors = problem.tensors(dtype)
    q, k, v = (x.cuda().requires_grad_() for x in tensors)
    options: dict[str, Any] = dict(problem.options)
    if options.get("layout") is not None:
        options["layout"] = options["layout"].to("cuda")
    out, lse = ops.attention(q, k, v, on_device(problem.pattern), return_lse=True, **options)
    weight, lse_weight = (x.cuda() for x in functional(tensors, torch.float32))
    visible = torch.where(torch.isinf(lse), 0.0, lse)
    ((out.float() * weight.to(dtype).float()).sum() + (visible * lse_weight).sum()).backward()
    values = {"out": out, "lse": lse, "dq": q.grad, "dk": k.grad, "dv": v.grad}
    return {name: x.detach().cpu() for name, x in values.items() if x is not None}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_attention(name: str, dtype: torch.dtype) -> None:
    problem = CASES[name]
    tensors = problem.tensors(dtype)
    exact = oracle(tensors, torch.float64, problem.pattern, **problem.options)
    rounded = torchs(tensors, problem.pattern, **problem.options)
    first = run(problem, dtype)
    for key, value in first.items():
        assert_error_bound(f"{name} {key}", value, rounded[key], exact[key], DIRECTIONS[key])
    again = run(problem, dtype)
    assert all(torch.equal(value, again[key]) for key, value in first.items()), "two runs differ"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_loss(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    hidden, weight = (torch.randn(n, 64, generator=generator).to(dtype) for n in (300, 1000))
    labels = torch.randint(1000, (300,), generator=generator)
    labels[::7] = -100
    found: dict[str, list[torch.Tensor]] = {}
    for kind, to, device in (("ours", dtype, "cuda"), ("torch", dtype, "cpu"), ("exact", torch.float64, "cpu")):
        h, w = (x.to(device, to).requires_grad_() for x in (hidden, weight))
        function = ops.segment_linear_cross_entropy if kind == "ours" else reference.segment_linear_cross_entropy
        options = {"segment": 128} if kind == "ours" else {}
        loss = function(h, w, labels.to(device), **options)
        loss.backward()
        assert h.grad is not None
        assert w.grad is not None
        found[kind] = [x.detach().cpu() for x in (loss, h.grad, w.grad)]
    for i, (name, factor) in enumerate((("loss", FORWARD), ("dhidden", BACKWARD), ("dweight", BACKWARD))):
        assert_error_bound(name, *(found[kind][i] for kind in ("ours", "torch", "exact")), factor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_norm(name: str, dtype: torch.dtype) -> None:
    problem = NORMS[name]
    tensors = problem.tensors(dtype)
    values = run_norm(problem, {n: x.cuda() for n, x in tensors.items()})
    exact, rounded = problem.oracle(tensors, torch.float64), problem.oracle(tensors, dtype)
    for key, value in values.items():
        expected = "dx" if key == "dresidual" else key
        factor = FORWARD if key in ("y", "sum") else BACKWARD
        assert_error_bound(key, value.cpu(), rounded[expected].to(value.dtype), exact[expected], factor)


def test_nothing_waits_for_the_device() -> None:
    """Calls return while the stream still works: torch's own check raises at every synchronisation."""
    q, k, v = (torch.randn(1, 4, 256, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    ops.attention(q, k, v).float().sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.attention(q, k, v, AttentionPattern.s2(group_size=64, sinks=1)).float().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_current_stream_is_used() -> None:
    q, k, v = (torch.randn(1, 4, 512, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    expected = ops.attention(q, k, v)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        assert torch.equal(ops.attention(q, k, v), expected)
