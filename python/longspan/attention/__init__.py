"""Axis *pairs*: which (query, key) pairs attend. Importing this package loads the configs only."""

from __future__ import annotations

from longspan.attention.base import AttentionMethod
from longspan.attention.full import FullAttention
from longspan.attention.s2 import S2Attention
from longspan.attention.window import WindowAttention
from longspan.registry import reserve

reserve("attention", "pq")

__all__ = ["AttentionMethod", "FullAttention", "S2Attention", "WindowAttention"]
