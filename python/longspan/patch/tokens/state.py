"""What a decoder layer knows of its token method, and what the layers of a model share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from longspan import ops
from longspan.tokens.lemo import BEFORE, LeMo

WEIGHT = "_longspan_predictor_{}"  # buffers of a layer
SIGNALS = "_longspan_signals"  # of a model


@dataclass
class Signals:
    """Of the forward that ran last. losses: of every token [M], where `wants_losses`. shares: by the path of a layer
    with `mlp: cols`, the kept channels' share of all norms [], on the layer's device.
    """

    wants_losses: bool = False
    losses: Tensor | None = None
    shares: dict[str, Tensor] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> Signals:
        memo[id(self)] = copied = Signals(self.wants_losses)
        return copied


@dataclass
class LayerTokens:
    """The token method of one layer."""

    config: LeMo
    path: str
    signals: Signals
    threshold: float | None = None
    watch: Callable[[Tensor, ops.KeptBlocks], None] | None = None  # is given scores and what was kept of them

    @property
    def late(self) -> bool:
        """Whether the rows are known in the backward only."""
        return self.config.selector not in BEFORE

    def measured(self, share: Tensor) -> None:
        """Note the share of the norms that this layer's kept channels have."""
        self.signals.shares[self.path] = share

    def predictor(self, layer: nn.Module, like: Tensor) -> ops.PredictorWeights:
        """The layer's predictor, in the dtype and on the device of `like`."""
        tensors = [getattr(layer, WEIGHT.format(i)).to(like.device, like.dtype) for i in range(6)]
        query, key = (tensors[0], tensors[1], tensors[2]), (tensors[3], tensors[4], tensors[5])
        return ops.PredictorWeights(query, key)


def figures(model: nn.Module) -> dict[str, float]:
    """What a run logs of its token method: `mlp_kept_norm`, with `mlp: cols`, the mean of its layers."""
    signals: Signals | None = getattr(model, SIGNALS, None)
    if signals is None or not signals.shares:
        return {}
    return {"mlp_kept_norm": sum(float(share) for share in signals.shares.values()) / len(signals.shares)}


@dataclass
class Choice:
    """What one call of a layer chose; a recomputation finds it here."""

    attention: ops.KeptBlocks | None = None
    mlp: Tensor | None = None
    scores: Tensor | None = field(default=None, repr=False)
