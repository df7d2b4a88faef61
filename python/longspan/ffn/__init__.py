"""Axis *blocks*: which weight blocks are computed. Importing this package loads the configs only."""

from __future__ import annotations

from longspan.ffn.base import FeedForwardMethod
from longspan.ffn.dense import DenseFeedForward
from longspan.ffn.routed import RoutedFeedForward

__all__ = ["DenseFeedForward", "FeedForwardMethod", "RoutedFeedForward"]
