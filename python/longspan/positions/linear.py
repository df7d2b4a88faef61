"""Linear position interpolation (Chen et al. 2023, arXiv 2306.15595, section 2.3)."""

from __future__ import annotations

from typing import Literal

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
