"""The oracle of the segmented loss: all logits at once, any float dtype, O(T V) memory."""

from __future__ import annotations

import torch
from torch import Tensor


def segment_linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    token_weights: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    bias: Tensor | None = None,
    logit_softcap: float | None = None,
    logit_scale: float = 1.0,
    num_items: int | float | Tensor | None = None,
) -> Tensor:
    """The same function as `longspan.ops.segment_linear_cross_entropy`, from its definition."""
    logits = torch.nn.functional.linear(hidden, weight, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * logit_scale
    if logit_softcap is not None:
        logits = logit_softcap * torch.tanh(logits / logit_softcap)
    counted = labels != ignore_index
    target = torch.where(counted, labels, 0)[..., None].long()
    losses = torch.logsumexp(logits, -1) - logits.gather(-1, target)[..., 0]
    losses = torch.where(counted, losses, 0)
    if token_weights is not None:
        losses = losses * token_weights.to(losses.dtype)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return losses.sum() / (counted.sum().clamp(min=1) if num_items is None else num_items)
