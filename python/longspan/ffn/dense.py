"""Every weight block of the feed-forward network is computed."""

from __future__ import annotations

from typing import Literal

from longspan.ffn.base import FeedForwardMethod
from longspan.registry import register


@register("ffn", "dense")
class DenseFeedForward(FeedForwardMethod):
    """The model's own feed-forward network."""

    method: Literal["dense"] = "dense"
