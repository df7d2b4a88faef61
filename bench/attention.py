"""What the attention rows share: inputs, both routes, the fused dense baseline, work, memory formula and gate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from bench.record import Gate
from longspan import kernels
from longspan.memory import measure
from longspan.ops import AttentionPattern, attention
from longspan.ops.reference import attention as reference

GATE_TOKENS = 640
FORWARD, BACKWARD = 2.0, 3.0  # the error law: this many times torch's error in the same dtype


@dataclass(frozen=True)
class Shape:
    """Sizes of one row: B is 1."""

    T: int
    H: int = 9
    K: int = 3
    D: int = 64

    def key(self, pattern: AttentionPattern, op: str = "attention_fwd+attention_bwd") -> str:
        """Op, device, dtype and sizes."""
        name = repr(pattern).removeprefix("AttentionPattern.")
        return f"{op}|cpu|float32|B=1,T={self.T},H={self.H},K={self.K},D={self.D},pattern={name}"


class Inputs:
    """q, k, v and the gradient of out, stored as projections store them; and every route from them to dq, dk, dv."""

    def __init__(self, shape: Shape, pattern: AttentionPattern, threads: int) -> None:
        self.shape, self.pattern, self.threads = shape, pattern, threads
        self.q, self.k, self.v, self.dout = (
            torch.randn(1, shape.T, heads, shape.D).transpose(1, 2) for heads in (shape.H, shape.K, shape.K, shape.H)
        )
        for x in (self.q, self.k, self.v):
            x.requires_grad_()
        self.spec = kernels.AttentionSpec(
            pattern.kind, group_size=pattern.group_size, window=pattern.size, sinks=pattern.sinks
        )
        self.arrays = [x.detach().numpy() for x in (self.q, self.k, self.v)]

    def op(self) -> tuple[Tensor, ...]:
        """Forward and backward through the torch op."""
        out = attention(self.q, self.k, self.v, self.pattern)
        return (out.detach(), *torch.autograd.grad(out, (self.q, self.k, self.v), self.dout))

    def pybind(self) -> tuple[Tensor, ...]:
        """Forward and backward through longspan.kernels, which knows no torch."""
        out, lse = kernels.attention_fwd(*self.arrays, self.spec, threads=self.threads)
        grads = kernels.attention_bwd(self.dout.numpy(), *self.arrays, out, lse, self.spec, threads=self.threads)
        return tuple(torch.from_numpy(x) for x in (out, *grads))

    def forward_op(self) -> Tensor:
        """Forward alone through the torch op."""
        with torch.no_grad():
            return attention(self.q, self.k, self.v, self.pattern)

    def forward_pybind(self) -> object:
        """Forward alone through longspan.kernels."""
        return kernels.attention_fwd(*self.arrays, self.spec, threads=self.threads)

    def dense(self) -> tuple[Tensor, ...]:
        """torch's fused dense causal attention, keys and values repeated as transformers does."""
        out = sdpa(self.q, self.k, self.v)
        return (out, *torch.autograd.grad(out, (self.q, self.k, self.v), self.dout))

    def forward_dense(self) -> Tensor:
        """Forward alone of the dense baseline."""
        with torch.no_grad():
            return sdpa(self.q, self.k, self.v)

    def flex(self) -> Callable[[], Tensor]:
        """torch's FlexAttention with this pattern as its mask, compiled; on the CPU it has no backward."""
        size = self.pattern.size if self.pattern.kind == "window" else self.shape.T
        sinks = self.pattern.sinks

        def visible(_b: Tensor, _h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return (i >= j) & ((i - j < size) | (j < sinks))

        mask = create_block_mask(visible, None, None, self.shape.T, self.shape.T, device="cpu")
        compiled = torch.compile(flex_attention, fullgraph=True)
        q, k, v = (x.detach() for x in (self.q, self.k, self.v))

        def forward() -> Tensor:
            with torch.no_grad():
                return compiled(q, k, v, block_mask=mask, enable_gqa=True)

        torch.testing.assert_close(forward(), self.forward_op(), rtol=1e-4, atol=1e-5)  # the same attention
        return forward


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """scaled_dot_product_attention behind transformers' repeat_kv."""
    B, K, S, D = k.shape
    groups = q.shape[1] // K
    k, v = (x[:, :, None].expand(B, K, groups, S, D).reshape(B, K * groups, S, D) for x in (k, v))
    return scaled_dot_product_attention(q, k, v, is_causal=True)


def visible_pairs(pattern: AttentionPattern, heads: int, tokens: int) -> int:
    """Visible (query, key) pairs of all heads, one document; causal patterns without tiles."""
    t = torch.arange(tokens)
    total = 0
    for shifted, count in ((0, heads // 2), (1, heads - heads // 2)):
        if pattern.kind == "s2":
            half = shifted * (pattern.group_size // 2)
            low = ((t + half) // pattern.group_size * pattern.group_size - half).clamp(min=0)
        elif pattern.kind == "window":
            low = (t - pattern.size + 1).clamp(min=0)
        else:
            low = torch.zeros_like(t)
        seen = t + 1 - low + torch.minimum(low, torch.tensor(pattern.sinks))
        total += count * int(seen.sum())
    return total


def flops(pattern: AttentionPattern, shape: Shape, *, backward: bool = True) -> float:
    """Two products forward, five backward, over the visible pairs: 14 D pairs in all."""
    return (14.0 if backward else 4.0) * shape.D * visible_pairs(pattern, shape.H, shape.T)


def memory(inputs: Inputs) -> dict[str, int]:
    """Peak live bytes of forward + backward beside its inputs, and the formula: out, lse, dq, dk, dv."""
    with measure() as m:
        inputs.op()
    s = inputs.shape
    return {
        "peak_live_bytes": m.peak_bytes,
        "predicted_bytes": 4 * s.T * (s.D * (2 * s.H + 2 * s.K) + s.H),
    }


def gate(shape: Shape, pattern: AttentionPattern, threads: int) -> Gate:
    """The error law on fewer tokens: out, dq, dk and dv of both routes against the reference in float64."""
    small = Shape(min(shape.T, GATE_TOKENS), shape.H, shape.K, shape.D)
    if pattern.kind == "window":
        pattern = AttentionPattern.window(min(pattern.size, 100), pattern.sinks)
    elif pattern.kind == "s2":
        pattern = AttentionPattern.s2(group_size=min(pattern.group_size, 160), sinks=pattern.sinks)
    inputs = Inputs(small, pattern, threads)
    exact, torchs = (_reference(inputs, dtype) for dtype in (torch.float64, torch.float32))
    passed, worst, worst_torch = True, 0.0, 0.0
    for route in (inputs.op, inputs.pybind):
        for i, (ours, theirs, true) in enumerate(zip(route(), torchs, exact, strict=True)):
            error, allowed = float((ours - true).abs().max()), float((theirs - true).abs().max())
            eps = 2 * torch.finfo(torch.float32).eps * max(1.0, float(true.abs().max()))
            passed &= error <= (FORWARD if i == 0 else BACKWARD) * allowed + eps
            worst, worst_torch = max(worst, error), max(worst_torch, allowed)
    return Gate(bool(passed), worst, worst_torch)


def _reference(inputs: Inputs, dtype: torch.dtype) -> tuple[Tensor, ...]:
    q, k, v = (x.detach().to(dtype).requires_grad_() for x in (inputs.q, inputs.k, inputs.v))
    out, _ = reference.attention(q, k, v, inputs.pattern)
    return (out.detach(), *torch.autograd.grad(out, (q, k, v), inputs.dout.to(dtype)))
