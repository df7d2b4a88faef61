"""Losses of layers beside the model's own: each has the gradient that it would have as a summand of the model's loss.

They travel with no buffer and no return value: what a layer returns carries them, so that any checkpoint around the
layer makes them again with the rest of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


@dataclass
class SideLosses:
    """Of one model. figures: by name and layer, what the last step had.

    scale: the gradient of what is differentiated with respect to the model's loss, times the share that this forward
    has of its step; known when the backward comes by the loss, 1 where longspan does not compute it.
    """

    scale: Tensor | float = 1.0
    figures: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> SideLosses:
        memo[id(self)] = copied = SideLosses()
        return copied

    def begin(self) -> None:
        """A forward of the whole model begins."""
        self.scale = 1.0

    def note(self, name: str, path: str, value: Tensor) -> None:
        """Remember a figure of a layer."""
        self.figures.setdefault(name, {})[path] = value.detach()

    def join(self, out: Tensor, loss: Tensor, weight: float) -> Tensor:
        """`out`, with the gradient of weight * loss, a number, behind it."""
        joined: Tensor = _Join.apply(self, weight, out, loss)
        return joined

    def heard(self, loss: Tensor, share: Tensor | float) -> Tensor:
        """The model's loss; its backward tells the layers by how much they count. share: of the step's labels."""
        told: Tensor = _Heard.apply(self, share, loss)
        return told


class _Join(Function):
    @staticmethod
    def forward(ctx: Any, losses: SideLosses, weight: float, out: Tensor, loss: Tensor) -> Tensor:
        ctx.losses, ctx.weight = losses, weight
        ctx.like = loss.new_empty(())
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[None, None, Tensor, Tensor]:
        scale = torch.as_tensor(ctx.losses.scale, dtype=ctx.like.dtype, device=ctx.like.device)
        return None, None, dout, scale * ctx.weight


class _Heard(Function):
    @staticmethod
    def forward(ctx: Any, losses: SideLosses, share: Tensor | float, loss: Tensor) -> Tensor:
        ctx.losses, ctx.share = losses, share
        return loss.clone()  # a client may divide it in place

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[None, None, Tensor]:
        ctx.losses.scale = dloss.detach() * ctx.share
        return None, None, dloss


def figures(losses: SideLosses) -> dict[str, float]:
    """The mean over the layers of each figure, for a run's log."""
    return {
        name: sum(float(value) for value in values.values()) / len(values) for name, values in losses.figures.items()
    }
