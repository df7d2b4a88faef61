"""Every weight block of the feed-forward network is computed."""

from __future__ import annotations

from typing import ClassVar, Literal

from longspan.registry import Method, register


class FeedForwardMethod(Method):
    """Config of a feed-forward method: which weight blocks are computed."""

    phases: ClassVar[tuple[str, ...]] = ("train", "eval")


@register("ffn", "dense")
class DenseFeedForward(FeedForwardMethod):
    """The model's own feed-forward network."""

    method: Literal["dense"] = "dense"
