"""No adapter: full fine-tuning, every parameter of the model trains."""

from __future__ import annotations

from typing import Literal

from longspan.adapters.base import AdapterMethod
from longspan.registry import register


@register("adapters", "none")
class NoAdapter(AdapterMethod):
    """Add nothing; the model's own weights train."""

    method: Literal["none"] = "none"
