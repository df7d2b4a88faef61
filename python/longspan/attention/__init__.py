"""Axis *pairs*: which (query, key) pairs attend. Importing this package loads the configs only."""

from __future__ import annotations

from longspan.attention.base import AttentionMethod
from longspan.attention.full import FullAttention
from longspan.attention.pq import PQAttention
from longspan.attention.s2 import S2Attention
from longspan.attention.window import WindowAttention

__all__ = ["AttentionMethod", "FullAttention", "PQAttention", "S2Attention", "WindowAttention"]
