"""The language-model head, read anew at every call: adapters may wrap it after the patch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from longspan import ops

SEGMENT = 2048


@dataclass(frozen=True)
class LogitTransform:
    """What a model does to its logits after the head: multiply by ``scale``, then ``softcap * tanh(x /
    softcap)``.
    """

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits [..., V] as the model returns them."""
        logits = logits if self.scale == 1.0 else logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def transform_of(config: Any) -> LogitTransform:
    """The logit transform that a config declares (Gemma's soft-cap, Granite's divisor, Cohere's factor)."""
    scale = 1.0
    if getattr(config, "logits_scaling", None):
        scale /= float(config.logits_scaling)
    if getattr(config, "logit_scale", None):
        scale *= float(config.logit_scale)
    return LogitTransform(scale, getattr(config, "final_logit_softcapping", None) or None)


def plain_linear(head: nn.Module) -> nn.Linear | None:
    """The ``nn.Linear`` that computes the logits, or None when there is more to it (LoRA on the head)."""
    inner = getattr(head, "modules_to_save", None)
    found: Any = head
    if isinstance(inner, nn.ModuleDict):
        active = [name for name in getattr(head, "active_adapters", ()) if name in inner]
        if getattr(head, "disable_adapters", False) or not active:
            found = head.original_module
        elif len(active) == 1:
            found = inner[active[0]]
    return found if type(found) is nn.Linear else None


def head_loss(
    head: nn.Module,
    hidden: Tensor,
    labels: Tensor,
    transform: LogitTransform,
    *,
    ignore_index: int,
    num_items: Tensor | int | None,
) -> Tensor:
    """Mean cross-entropy of ``head(hidden)`` against labels, never holding more than a segment of logits.

    hidden [..., C]; labels [...] already shifted; the sum is divided by ``num_items`` if given, else by the
    number of labels that count.
    """
    linear = plain_linear(head)
    if linear is None:
        return _through_module(head, hidden, labels, transform, ignore_index, num_items)
    return _in_segments(linear, hidden, labels, transform, ignore_index=ignore_index, num_items=num_items)


def _in_segments(
    linear: nn.Linear, hidden: Tensor, labels: Tensor, transform: LogitTransform, **options: Any
) -> Tensor:
    return ops.segment_linear_cross_entropy(
        hidden,
        linear.weight,
        labels,
        segment=SEGMENT,
        bias=linear.bias,
        logit_softcap=transform.softcap,
        logit_scale=transform.scale,
        **options,
    )


@torch.no_grad()
def token_losses(
    head: nn.Module, hidden: Tensor, labels: Tensor, transform: LogitTransform, *, ignore_index: int
) -> Tensor:
    """The cross-entropy of every token, 0 where its label is ignored, without a graph: [M] of hidden [..., C]."""
    linear = plain_linear(head)
    if linear is not None:
        losses = _in_segments(linear, hidden, labels, transform, ignore_index=ignore_index, reduction="none")
        return losses.reshape(-1)
    rows, targets = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    parts = [
        nn.functional.cross_entropy(transform(head(part).float()), target, ignore_index=ignore_index, reduction="none")
        for part, target in zip(rows.split(SEGMENT), targets.split(SEGMENT), strict=True)
    ]
    return torch.cat(parts)


def _through_module(
    head: nn.Module,
    hidden: Tensor,
    labels: Tensor,
    transform: LogitTransform,
    ignore_index: int,
    num_items: Tensor | int | None,
) -> Tensor:
    """The same for a head that is more than one linear layer: segments through the module, recomputed in
    backward.
    """
    counts = labels.reshape(-1) != ignore_index
    rows, targets = hidden.reshape(-1, hidden.shape[-1])[counts], labels.reshape(-1)[counts]

    def segment_loss(part: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(transform(head(part).float()), target, reduction="sum")

    total = hidden.new_zeros((), dtype=torch.float32)
    for start in range(0, rows.shape[0], SEGMENT):
        part = slice(start, start + SEGMENT)
        total = total + checkpoint(segment_loss, rows[part], targets[part], use_reentrant=False)
    items = targets.numel() if num_items is None else num_items
    items = torch.as_tensor(items, device=total.device)
    return total / torch.where(items == 0, 1, items)  # nothing to count: 0, as the op says
