"""Full causal attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from longspan.attention.base import AttentionMethod
from longspan.registry import register

if TYPE_CHECKING:
    from longspan.ops import AttentionPattern


@register("attention", "full")
class FullAttention(AttentionMethod):
    """Every query sees every earlier key of its document and itself."""

    method: Literal["full"] = "full"

    def pattern(self, length: int) -> AttentionPattern:
        """The full causal pattern, whatever the length."""
        from longspan.ops import AttentionPattern

        return AttentionPattern.full()
