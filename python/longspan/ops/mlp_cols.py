"""A feed-forward branch that is computed whole and differentiated through its strongest channels alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from longspan.ops._define import op
from longspan.ops._feed_forward import check_branch, hidden_of
from longspan.ops.glu import ACTIVATIONS, activation
from longspan.ops.lora import Projection, norm_lora_linear
from longspan.ops.norm import Norm
from longspan.ops.replay import Recording


def mlp_cols(
    x: Tensor,
    up: Sequence[Projection],
    down: Projection,
    norm: Norm,
    *,
    activation: str,
    share: float,
    packed: bool = False,
    residual: Tensor,
    watch: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """residual + down(act(gate) * up), its gradient in x through max(1, floor(share F)) of the F channels.

    x: [M,C] as in `norm_lora_linear`; up: gate and up; or one projection to both one after the other, with `packed`; or
    one, which goes through the activation alone. The score of a channel is the norm over all rows of act(gate) plus
    that of up; ties go to the earlier one. The result is that of the dense branch, bit for bit. Saved: x, a number or
    two a row, and gate and up of the kept channels. watch: is given the kept channels' share of the scores' sum [].

    Differentiable, once, in x and residual; biased: what flows through the other channels is missing. The weights are
    constants. Raises ValueError for weights that require grad, for adapters, and for what does not fit.
    Source: LeMo's released code (Wang et al. 2025), which kept act(gate) too.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"mlp_cols: activation is {activation!r}; allowed: {', '.join(ACTIVATIONS)}")
    if not 0 < share <= 1:
        raise ValueError(f"mlp_cols: share is {share}; it must be above 0 and at most 1")
    check_branch("mlp_cols", up, down, packed)
    widths = {p.weight.shape[0] // (1 + packed) for p in up}
    if len(widths) > 1 or down.weight.dim() != 2 or down.weight.shape[1] not in widths:
        raise ValueError(
            f"mlp_cols: weights are {[tuple(p.weight.shape) for p in up]} up and {tuple(down.weight.shape)} down; all "
            "must be of the same hidden units"
        )
    for p in (*up, down):
        trained = [t for t in (p.weight, p.bias) if t is not None and t.requires_grad]
        if trained or p.lora_a is not None or p.lora_b is not None or p.residual is not None:
            raise ValueError(
                "mlp_cols: a projection has trained weights, an adapter or a residual, which would get no gradient; "
                "all of them must be frozen and plain"
            )
    if any(t is not None and t.requires_grad for t in (norm.weight, norm.bias)):
        raise ValueError("mlp_cols: the norm's weights require grad and would get none; freeze them")
    if x.dim() != 2 or residual.shape != (x.shape[0], down.weight.shape[0]):
        raise ValueError(
            f"mlp_cols: x is {tuple(x.shape)} and residual {tuple(residual.shape)}; they must be [K,C] of the same rows"
        )
    branch = _Branch(_split(up) if packed else tuple(up), down, norm, activation, share, watch)
    out: Tensor = _Columns.apply(branch, x, residual)
    return out


def _split(up: Sequence[Projection]) -> tuple[Projection, ...]:
    """gate and up of a packed projection."""
    weights = up[0].weight.chunk(2)
    biases = (None, None) if up[0].bias is None else up[0].bias.chunk(2)
    return tuple(Projection(weight, bias) for weight, bias in zip(weights, biases, strict=True))


@dataclass(frozen=True)
class _Branch:
    up: tuple[Projection, ...]
    down: Projection
    norm: Norm
    activation: str
    share: float
    watch: Callable[[Tensor], None] | None

    def strongest(self, wide: Sequence[Tensor]) -> Tensor:
        """Numbers of the kept channels, increasing."""
        sides = [activation(wide[0], self.activation), *wide[1:]]
        scores = sum(_column_norms(side) for side in sides)
        assert isinstance(scores, Tensor)
        count = max(1, int(self.share * len(scores)))
        kept = torch.sort(scores, descending=True, stable=True).indices[:count].sort().values
        if self.watch is not None:
            self.watch(scores[kept].sum() / scores.sum())
        return kept


def _column_norms(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=0, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


class _Columns(Function):
    @staticmethod
    def forward(ctx: Any, branch: _Branch, rows: Tensor, residual: Tensor) -> Tensor:
        with Recording(len(rows)) as recording:
            wide = norm_lora_linear(rows, branch.up, branch.norm)
        _, (_, _, rstd, mean) = recording.results[0]
        kept = branch.strongest(wide)
        ctx.branch = branch
        ctx.save_for_backward(rows, rstd, mean, kept, *(x.index_select(1, kept) for x in wide))
        down = replace(branch.down, residual=residual)
        return norm_lora_linear(hidden_of(wide, branch.activation, False), [down])[0]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("mlp_cols is differentiable once; its gradient has no graph (create_graph=True)")
        rows, rstd, mean, kept, *wide = ctx.saved_tensors
        branch: _Branch = ctx.branch
        if not ctx.needs_input_grad[1]:
            return None, None, dy
        dhidden = dy @ branch.down.weight.index_select(1, kept)
        dgate, dup = op("glu_bwd")(dhidden, wide[0], wide[1] if len(wide) == 2 else None, branch.activation, False)
        none = rows.new_empty(0)
        count, norm = len(wide), branch.norm
        dx = op("lora_linear_bwd")(
            [dgate, dup][:count],
            rows,
            norm.weight,
            norm.bias,
            norm.kind,
            float(norm.eps),
            float(norm.weight_offset),
            [p.weight.index_select(0, kept) for p in branch.up],
            [none] * count,
            [none] * count,
            [none] * count,
            [1.0] * count,
            0.0,
            None,
            rstd.new_empty(len(rows), 0),
            rstd,
            mean,
            True,
            False,
            False,
            *([0] * count for _ in range(4)),
        )[0]
        return None, dx, dy
