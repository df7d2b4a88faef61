"""A feed-forward that is computed whole and differentiated through its strongest channels alone (as LeMo's code)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longspan import ops
from longspan.patch.layers import parts

if TYPE_CHECKING:
    from longspan.patch.tokens.layer import KeptLayer


def feed_forward_of_columns(call: KeptLayer, rows: Tensor, residual: Tensor, share: float) -> Tensor:
    """residual + the feed-forward of rows [M,C], its gradient through a share of the channels; see `ops.mlp_cols`.

    Raises ValueError unless the branch is a norm and frozen linear maps without adapters.
    """
    family = call.state.family
    found = [parts.linear_of(parts.attribute(call.layer, path)) for path in (*family.up, family.down)]
    norm = parts.norm_of(parts.attribute(call.layer, family.norm2))
    projections = [entry[0] for entry in found if entry is not None]
    tensors = [t for p in projections for t in (p.weight, p.bias) if t is not None]
    tensors += [] if norm is None else [t for t in (norm.weight, norm.bias) if t is not None]
    reason = None
    if len(projections) < len(found) or norm is None or call.state.activation is None or family.post2 is not None:
        reason = "its norm or its projections are not plain ones"
    elif any(p.lora_a is not None for p in projections) or any(t.requires_grad for t in tensors):
        reason = "its weights are trained (or have adapters), and would silently get no gradient"
    elif torch.is_autocast_enabled(rows.device.type):
        reason = "it runs under autocast"
    if reason is not None:
        raise ValueError(
            f"{call.tokens.path}: mlp: cols does not serve this feed-forward: {reason}; use mlp: rows, or attach "
            "adapters to the attention alone (adapter.targets)"
        )
    assert norm is not None
    assert call.state.activation is not None
    return ops.mlp_cols(
        rows,
        projections[:-1],
        projections[-1],
        norm,
        activation=call.state.activation,
        share=share,
        packed=family.gated and len(family.up) == 1,
        residual=residual,
        watch=call.tokens.measured,
    )
