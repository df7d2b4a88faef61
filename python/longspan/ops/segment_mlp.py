"""A whole feed-forward branch that keeps only its input: rows go through it, and back, some at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from longspan.ops._feed_forward import check_branch, hidden_of
from longspan.ops._rows import as_rows
from longspan.ops.glu import ACTIVATIONS
from longspan.ops.lora import Projection, norm_lora_linear
from longspan.ops.norm import Norm


def segment_mlp(
    x: Tensor,
    up: Sequence[Projection],
    down: Projection,
    norm: Norm | None = None,
    *,
    activation: str,
    packed: bool = False,
    residual: Tensor | None = None,
    segment: int = 2048,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    known: Tensor | None = None,
) -> Tensor:
    """residual + down(act(gate) * up) with gate, up = norm_lora_linear(x, up, norm), `segment` rows at a time.

    x: [..., C] as in `norm_lora_linear`. up: gate and up; or one projection to both one after the other, with `packed`;
    or one, which goes through the activation alone. down: [C,F]; activation: one of `glu`'s. residual: [..., C], often
    x itself. Dropout on the adapters draws one mask a projection and segment; seed is an int64 tensor with one element
    each of up and down, or None to draw them.

    Differentiable, once, in x, residual and all tensors of the projections and the norm. Saved: x by reference; gate
    and up exist for one segment only, forward and backward, and are made again for the gradient, which costs the
    products of `up` once more. Equal to the same ops on all rows at once: y bit for bit, sums over rows up to rounding.
    known: y, computed before without a graph; then only the gradient is left to do.

    Raises ValueError for what does not fit. Source: Chen et al. 2016 (recomputation), by rows instead of layers.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"segment_mlp: activation is {activation!r}; allowed: {', '.join(ACTIVATIONS)}")
    if segment < 1:
        raise ValueError(f"segment_mlp: segment is {segment}; it must be at least 1")
    check_branch("segment_mlp", up, down, packed)
    if any(p.residual is not None for p in (*up, down)):
        raise ValueError("segment_mlp: a projection has a residual; give it to segment_mlp as residual")
    if residual is not None and (residual.shape[:-1] != x.shape[:-1] or residual.shape[-1] != down.weight.shape[0]):
        raise ValueError(
            f"segment_mlp: residual has shape {tuple(residual.shape)}; it must be "
            f"{(*x.shape[:-1], down.weight.shape[0])}"
        )
    if known is not None and (known.requires_grad or known.shape != (*x.shape[:-1], down.weight.shape[0])):
        raise ValueError(
            f"segment_mlp: known has shape {tuple(known.shape)}, requires_grad {known.requires_grad}; it must be "
            f"{(*x.shape[:-1], down.weight.shape[0])} and computed without a graph"
        )
    rows, added = as_rows(x), None if residual is None else as_rows(residual)
    segments = max(1, -(-rows.shape[0] // segment))
    seeds = _seeds(seed, segments, len(up) + 1, x.device) if dropout_p > 0 else None
    branch = _Branch.of(up, down, norm, activation, packed, dropout_p, segment)
    y: Tensor = _SegmentMlp.apply(
        branch, seeds, None if known is None else (as_rows(known),), rows, added, *branch.tensors
    )
    return y.reshape(*x.shape[:-1], y.shape[-1])


def _seeds(seed: Tensor | None, segments: int, count: int, device: torch.device) -> Tensor:
    """[segments, count]: each segment has rows of its own, so it needs masks of its own."""
    if seed is None:
        return torch.randint(torch.iinfo(torch.int64).max, (segments, count), device=device)
    if seed.dtype != torch.int64 or seed.numel() != count:
        raise ValueError(
            f"segment_mlp: seed is {seed.dtype} {tuple(seed.shape)}; it must be int64 with {count} elements"
        )
    return seed.reshape(1, count) + torch.arange(segments, device=seed.device)[:, None]


@dataclass(frozen=True)
class _Branch:
    """The branch's structure; its tensors stand in a flat list, None where there is none."""

    scalings: tuple[float, ...]
    norm: Norm | None
    activation: str
    packed: bool
    dropout_p: float
    segment: int
    tensors: tuple[Tensor | None, ...]

    @classmethod
    def of(
        cls,
        up: Sequence[Projection],
        down: Projection,
        norm: Norm | None,
        activation: str,
        packed: bool,
        dropout_p: float,
        segment: int,
    ) -> _Branch:
        every = (*up, down)
        tensors = tuple(t for p in every for t in (p.weight, p.bias, p.lora_a, p.lora_b))
        vectors = (None, None) if norm is None else (norm.weight, norm.bias)
        return cls(tuple(p.scaling for p in every), norm, activation, packed, dropout_p, segment, (*tensors, *vectors))

    def run(self, rows: Tensor, added: Tensor | None, tensors: Sequence[Tensor | None], seeds: Tensor | None) -> Tensor:
        """One segment, of the tensors that stand for this branch's own."""
        projections = [_projection(tensors[4 * i : 4 * i + 4], scaling) for i, scaling in enumerate(self.scalings)]
        norm = None if self.norm is None else replace(self.norm, weight=tensors[-2], bias=tensors[-1])
        first, last = (None, None) if seeds is None else (seeds[:-1].contiguous(), seeds[-1:].contiguous())
        wide = norm_lora_linear(rows, projections[:-1], norm, dropout_p=self.dropout_p, seed=first)
        hidden = hidden_of(wide, self.activation, self.packed)
        down = replace(projections[-1], residual=added)
        return norm_lora_linear(hidden, [down], dropout_p=self.dropout_p, seed=last)[0]


def _projection(tensors: Sequence[Tensor | None], scaling: float) -> Projection:
    weight, bias, lora_a, lora_b = tensors
    assert weight is not None
    return Projection(weight, bias, lora_a, lora_b, scaling)


class _SegmentMlp(Function):
    """Recomputation by segments of rows."""

    @staticmethod
    def forward(
        ctx: Any,
        branch: _Branch,
        seeds: Tensor | None,
        known: tuple[Tensor] | None,
        rows: Tensor,
        added: Tensor | None,
        *tensors: Tensor | None,
    ) -> Tensor:
        ctx.branch = replace(branch, tensors=())
        ctx.added = added is not None
        ctx.save_for_backward(rows, seeds, *tensors)
        if known is not None:
            return known[0]
        parts = []
        for index, start in enumerate(range(0, max(1, rows.shape[0]), branch.segment)):
            part = slice(start, start + branch.segment)
            own = None if seeds is None else seeds[index]
            parts.append(branch.run(rows[part], None if added is None else added[part], tensors, own))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("segment_mlp is differentiable once; its gradient has no graph (create_graph=True)")
        rows, seeds, *tensors = ctx.saved_tensors
        branch: _Branch = ctx.branch
        wanted = ctx.needs_input_grad[5:]
        leaves = [
            None if t is None else t.detach().requires_grad_(need) for t, need in zip(tensors, wanted, strict=True)
        ]
        targets = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
        sums: list[Tensor] = []
        drows = torch.empty_like(rows) if ctx.needs_input_grad[3] else None
        for index, start in enumerate(range(0, max(1, rows.shape[0]), branch.segment)):
            part = slice(start, start + branch.segment)
            x = rows[part].detach().requires_grad_(drows is not None)
            with torch.enable_grad():
                y = branch.run(x, None, leaves, None if seeds is None else seeds[index])
            inputs = [x, *targets] if drows is not None else targets
            if not inputs:
                break
            found = torch.autograd.grad(y, inputs, dy[part])
            if drows is not None:
                drows[part] = found[0]
                found = found[1:]
            sums = list(found) if not sums else [total.add_(more) for total, more in zip(sums, found, strict=True)]
        remaining = iter(sums)
        gradients = [next(remaining) if leaf is not None and leaf.requires_grad else None for leaf in leaves]
        return None, None, None, drows, dy if ctx.added else None, *gradients
