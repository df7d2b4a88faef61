"""Slow weights beside the trained ones (momentum-based interpolation, Stojanovski et al. 2022, arXiv 2211.03186)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from longspan.registry import Float, Int, register
from longspan.updates.base import UpdateHook

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from longspan.updates.slow_weights import SlowWeights


@register("update_hook", "ema")
class MovingAverage(UpdateHook):
    """slow = decay slow + (1 - decay) trained after every ``every`` steps, from the weights the run began with.

    Slow weights are float32 (4 bytes a weight), never enter the loss, and are what is evaluated and saved at the end;
    checkpoints have both. A horizon of h steps is decay 1 - 1 / h.
    """

    method: Literal["ema"] = "ema"
    decay: Float = Field(default=0.999, ge=0, le=1)
    every: Int = Field(default=1, ge=1)

    def start(self, named: Mapping[str, nn.Parameter]) -> SlowWeights:
        """`longspan.updates.SlowWeights` of parameters that train."""
        from longspan.updates.slow_weights import SlowWeights

        return SlowWeights(named, self.decay, self.every)
