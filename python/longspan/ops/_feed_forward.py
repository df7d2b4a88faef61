"""What the feed-forward ops share: how many projections go up, and what stands between up and down."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from longspan.ops.glu import activation as activate
from longspan.ops.glu import glu
from longspan.ops.lora import Projection


def check_up(name: str, up: Sequence[Projection], packed: bool) -> None:
    """Raises ValueError unless there are gate and up, both in one (packed), or a plain one."""
    if any(not isinstance(p, Projection) or not isinstance(p.weight, Tensor) for p in up):
        raise TypeError(f"{name}: each projection up must be a Projection with a weight")
    if len(up) not in (1, 2) or (packed and len(up) != 1):
        raise ValueError(f"{name}: {len(up)} projections up with packed={packed}; allowed: 2, or 1")


def hidden_of(wide: Sequence[Tensor], activation: str, packed: bool) -> Tensor:
    """act(gate) * up, or act of a plain projection."""
    return glu(*wide, activation=activation) if packed or len(wide) == 2 else activate(wide[0], activation)
