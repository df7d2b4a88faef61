"""What the feed-forward ops share: how many projections go up, and what stands between up and down."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from longspan.ops.glu import activation as activate
from longspan.ops.glu import glu
from longspan.ops.lora import Projection


def check_branch(name: str, up: Sequence[Projection], down: Projection, packed: bool) -> None:
    """Raises ValueError unless there are gate and up, both in one (packed), or a plain one; TypeError for no weight."""
    for place, projections in (("each projection up", up), ("the projection down", (down,))):
        if any(not isinstance(p, Projection) or not isinstance(p.weight, Tensor) for p in projections):
            raise TypeError(f"{name}: {place} must be a Projection with a weight")
    if len(up) not in (1, 2) or (packed and len(up) != 1):
        raise ValueError(f"{name}: {len(up)} projections up with packed={packed}; allowed: 2, or 1")


def hidden_of(wide: Sequence[Tensor], activation: str, packed: bool) -> Tensor:
    """act(gate) * up, or act of a plain projection."""
    return glu(*wide, activation=activation) if packed or len(wide) == 2 else activate(wide[0], activation)
