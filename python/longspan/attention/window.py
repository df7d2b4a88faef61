"""Sliding window with sinks (Beltagy et al. 2020, arXiv 2004.05150; Xiao et al. 2023, arXiv 2309.17453)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from longspan.attention.base import AttentionMethod
from longspan.registry import Int, register

if TYPE_CHECKING:
    from longspan.ops import AttentionPattern


@register("attention", "window")
class WindowAttention(AttentionMethod):
    """The last ``size`` keys, the query itself included, and the first ``sinks`` tokens of the document."""

    method: Literal["window"] = "window"
    size: Int = Field(ge=1)
    sinks: Int = Field(default=4, ge=0)

    def pattern(self, length: int) -> AttentionPattern:
        """The window pattern, whatever the length."""
        from longspan.ops import AttentionPattern

        return AttentionPattern.window(self.size, sinks=self.sinks)
