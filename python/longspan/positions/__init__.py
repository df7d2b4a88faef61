"""Axis *positions*: which angle a token gets.

Importing this package loads the configs only; `longspan.positions.apply.apply_positions` needs torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from longspan.positions.base import PositionMethod
from longspan.positions.linear import LinearInterpolation
from longspan.positions.none import NoRescaling
from longspan.registry import reserve

if TYPE_CHECKING:
    from longspan.positions.apply import AppliedPositions, apply_positions

reserve("positions", "ntk", "dynamic_ntk", "yarn", "longrope", "self_extend")

__all__ = ["AppliedPositions", "LinearInterpolation", "NoRescaling", "PositionMethod", "apply_positions"]


def __getattr__(name: str) -> Any:
    if name in ("AppliedPositions", "apply_positions"):
        from longspan.positions import apply

        return getattr(apply, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
