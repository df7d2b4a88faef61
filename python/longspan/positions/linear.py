"""Linear position interpolation (Chen et al. 2023, arXiv 2306.15595, section 2.3)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from longspan.positions.base import PositionMethod
from longspan.registry import Float, register


@register("positions", "linear")
class LinearInterpolation(PositionMethod):
    """Position m gets the angle of m / ``factor``.

    ``factor`` (>= 1) multiplies a linear factor that the model has already: a model extended by 8 and
    pushed to twice its length ends with 16.
    """

    method: Literal["linear"] = "linear"
    factor: Float = Field(ge=1.0, allow_inf_nan=False)

    def rescale(self, rope: dict[str, Any]) -> dict[str, Any]:
        """The same angles slowed down by ``factor``; composes with rope types default and linear only."""
        kind = rope.get("rope_type", "default")
        if kind not in ("default", "linear"):
            raise ValueError(
                f"positions method 'linear' does not compose with the model's rope type {kind!r}; "
                "it composes with 'default' and 'linear'; set positions: {method: none}"
            )
        existing = float(rope.get("factor") or 1.0) if kind == "linear" else 1.0
        return {**rope, "rope_type": "linear", "factor": existing * self.factor}

    def stretch(self) -> float:
        """The factor."""
        return self.factor
