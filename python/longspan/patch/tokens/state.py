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
    """What becomes known outside of the layers: the loss of every token [M] of the forward that ran last."""

    losses: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Signals:
        memo[id(self)] = copied = Signals()
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

    def predictor(self, layer: nn.Module, like: Tensor) -> ops.PredictorWeights:
        """The layer's predictor, in the dtype and on the device of `like`."""
        tensors = [getattr(layer, WEIGHT.format(i)).to(like.device, like.dtype) for i in range(6)]
        query, key = (tensors[0], tensors[1], tensors[2]), (tensors[3], tensors[4], tensors[5])
        return ops.PredictorWeights(query, key)


@dataclass
class Choice:
    """What one call of a layer chose; a recomputation finds it here."""

    attention: ops.KeptBlocks | None = None
    mlp: Tensor | None = None
    scores: Tensor | None = field(default=None, repr=False)
