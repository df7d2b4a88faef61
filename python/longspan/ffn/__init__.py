"""Axis *blocks*: which weight blocks are computed. Importing this package loads the configs only."""

from __future__ import annotations

from longspan.ffn.dense import DenseFeedForward, FeedForwardMethod
from longspan.registry import reserve

reserve("ffn", "routed")

__all__ = ["DenseFeedForward", "FeedForwardMethod"]
