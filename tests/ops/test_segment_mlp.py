"""The feed-forward in segments against the same ops on all rows: results, gradients, what is kept, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from longspan.memory import measure
from longspan.ops import Norm, Projection, activation, glu, norm_lora_linear, segment_mlp

C, F, R = 24, 40, 3
F32, F64 = torch.float32, torch.float64


def projection(n: int, c: int, dtype: torch.dtype, adapter: bool = True, bias: bool = False) -> Projection:
    def draw(*shape: int) -> Tensor:
        return (torch.randn(*shape, dtype=F64) * 0.3).to(dtype).requires_grad_()

    weight = draw(n, c)
    a, b = (draw(R, c), draw(n, R)) if adapter else (None, None)
    return Projection(weight, draw(n) if bias else None, a, b, 0.5)


class Branch:
    """One feed-forward: `kind` is gated, packed or plain."""

    def __init__(self, kind: str = "gated", dtype: torch.dtype = F64, rows: int = 37, **options: Any) -> None:
        torch.manual_seed(0)
        widths = {"gated": (F, F), "packed": (2 * F,), "plain": (F,)}[kind]
        self.kind = kind
        self.up = [projection(n, C, dtype, **options) for n in widths]
        self.down = projection(C, F, dtype, **options)
        weight = torch.rand(C, dtype=dtype).add(0.5).requires_grad_()
        self.norm = Norm(weight, torch.randn(C, dtype=dtype), "layer", 1e-5)
        self.x = torch.randn(rows, C, dtype=dtype).requires_grad_()

    def leaves(self) -> list[Tensor]:
        every = [t for p in (*self.up, self.down) for t in (p.weight, p.bias, p.lora_a, p.lora_b) if t is not None]
        assert self.norm.weight is not None
        return [self.x, self.norm.weight, *every]

    def segmented(self, x: Tensor | None = None, **options: Any) -> Tensor:
        x = self.x if x is None else x
        options = {"activation": "gelu", "packed": self.kind == "packed", "segment": 16, "residual": x} | options
        return segment_mlp(x, self.up, self.down, self.norm, **options)

    def whole(self) -> Tensor:
        wide = norm_lora_linear(self.x, self.up, self.norm)
        hidden = activation(wide[0], "gelu") if self.kind == "plain" else glu(*wide, activation="gelu")
        return norm_lora_linear(hidden, [replace(self.down, residual=self.x)])[0]


@pytest.mark.parametrize("dtype", [F32, F64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["gated", "packed", "plain"])
def test_equals_the_ops_on_all_rows(kind: str, bias: bool, dtype: torch.dtype) -> None:
    branch = Branch(kind, dtype, bias=bias)
    y, expected = branch.segmented(), branch.whole()
    assert torch.equal(y, expected)
    dy = torch.randn_like(y)
    given, wanted = (torch.autograd.grad(out, branch.leaves(), dy) for out in (y, expected))
    for ours, theirs in zip(given, wanted, strict=True):
        close = torch.finfo(dtype).eps * 8
        torch.testing.assert_close(ours, theirs, rtol=close, atol=close * float(theirs.abs().max().clamp(min=1)))


@pytest.mark.parametrize("rows", [0, 1, 15, 16, 17, 32])
def test_any_number_of_rows(rows: int) -> None:
    branch = Branch(rows=rows)
    y = branch.segmented()
    assert torch.equal(y, branch.whole())
    torch.autograd.grad(y, branch.leaves(), torch.randn_like(y))


@pytest.mark.parametrize("kind", ["gated", "plain"])
def test_gradcheck(kind: str) -> None:
    branch = Branch(kind, rows=5)
    assert torch.autograd.gradcheck(
        lambda x, *_: branch.segmented(x, segment=2), tuple(branch.leaves()), fast_mode=True
    )


def test_dropout_has_its_own_mask_in_every_segment_and_the_same_in_the_backward() -> None:
    branch, seed = Branch(rows=32), torch.tensor([5, 6, 7])
    branch.x = branch.x.detach()[:1].expand(32, -1).contiguous().requires_grad_()
    options = {"dropout_p": 0.5, "seed": seed}
    y = branch.segmented(**options)
    assert torch.equal(y, branch.segmented(**options))
    assert not torch.equal(y[:16], y[16:])
    assert torch.autograd.gradcheck(
        lambda x, *_: branch.segmented(x, **options), (branch.x, *branch.leaves()[1:]), fast_mode=True
    )
    torch.manual_seed(1)
    first = branch.segmented(dropout_p=0.5)
    assert not torch.equal(first, branch.segmented(dropout_p=0.5))
    torch.manual_seed(1)
    assert torch.equal(first, branch.segmented(dropout_p=0.5))


def test_only_the_input_is_kept() -> None:
    """What lives between forward and backward is x and the result; the peak holds one segment of gate and up."""
    torch.manual_seed(0)
    rows, wide, segment = 4096, 512, 256
    x = torch.randn(rows, 64, requires_grad=True)
    up = [Projection(torch.randn(wide, 64)) for _ in range(2)]
    down = Projection(torch.randn(64, wide))

    def step(size: int) -> Tensor:
        y = segment_mlp(x, up, down, Norm(), activation="silu", segment=size)
        y.sum().backward()
        return y

    peaks = []
    for size in (segment, rows):
        step(size)
        x.grad = None
        with measure() as live:
            step(size)
        x.grad = None
        peaks.append(live.peak_bytes)
    peak, whole = peaks
    results = 4 * rows * 64 * 4  # y, dx, dx as the gradient, and what autograd adds up
    assert peak <= results + 8 * segment * wide * 4 + 4 * 2**20
    assert whole >= results + 3 * rows * wide * 4


def test_frozen_tensors_get_no_gradient() -> None:
    branch = Branch()
    for projection_ in (*branch.up, branch.down):
        projection_.weight.requires_grad_(False)
    branch.segmented().sum().backward()
    assert all(p.weight.grad is None and p.lora_a is not None and p.lora_a.grad is not None for p in branch.up)
    branch.x.requires_grad_(False)
    branch.segmented().sum().backward()


BRANCH = Branch()
BAD: dict[str, Callable[[], Any]] = {
    "segment_mlp: activation is 'tanh'; allowed: silu, gelu, gelu_tanh, relu, relu2": lambda: BRANCH.segmented(
        activation="tanh"
    ),
    "segment_mlp: segment is 0; it must be at least 1": lambda: BRANCH.segmented(segment=0),
    "segment_mlp: 2 projections up with packed=True; allowed: 2, or 1": lambda: BRANCH.segmented(packed=True),
    "segment_mlp: residual has shape (37, 3); it must be (37, 24)": lambda: BRANCH.segmented(
        residual=torch.zeros(37, 3)
    ),
    "segment_mlp: seed is torch.int64 (2,); it must be int64 with 3 elements": lambda: BRANCH.segmented(
        dropout_p=0.1, seed=torch.zeros(2, dtype=torch.int64)
    ),
    "segment_mlp: a projection has a residual; give it to segment_mlp as residual": lambda: segment_mlp(
        BRANCH.x, BRANCH.up, replace(BRANCH.down, residual=BRANCH.x), activation="silu"
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message: str) -> None:
    with pytest.raises(ValueError) as error:
        BAD[message]()
    assert str(error.value) == message


def test_a_projection_without_weight() -> None:
    bare = replace(BRANCH.down, weight=None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^segment_mlp: the projection down must be a Projection with a weight$"):
        segment_mlp(BRANCH.x, BRANCH.up, bare, activation="silu")
    with pytest.raises(TypeError, match=r"^segment_mlp: each projection up must be a Projection with a weight$"):
        segment_mlp(BRANCH.x, [BRANCH.up[0], bare], BRANCH.down, activation="silu")
