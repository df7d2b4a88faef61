"""Positions as the model was trained with them."""

from __future__ import annotations

from typing import Any, Literal

from longspan.positions.base import PositionMethod
from longspan.registry import register


@register("positions", "none")
class NoRescaling(PositionMethod):
    """Leave the model's rotary angles alone."""

    method: Literal["none"] = "none"

    def rescale(self, rope: dict[str, Any]) -> None:
        """Nothing changes."""
        return
