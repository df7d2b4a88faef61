"""Axis *positions*: which angle a token gets. Importing this package loads the configs only."""

from __future__ import annotations

from longspan.positions.base import PositionMethod
from longspan.positions.linear import LinearInterpolation
from longspan.positions.none import NoRescaling
from longspan.registry import reserve

reserve("positions", "ntk", "dynamic_ntk", "yarn", "longrope", "self_extend")

__all__ = ["LinearInterpolation", "NoRescaling", "PositionMethod"]
