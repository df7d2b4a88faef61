"""Shifted sparse attention (Chen et al. 2023, LongLoRA, arXiv 2309.12307, section 3.2), causal at both ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from longspan.attention.base import AttentionMethod, Phase
from longspan.registry import Int, register

if TYPE_CHECKING:
    from longspan.ops import AttentionPattern


@register("attention", "s2")
class S2Attention(AttentionMethod):
    """Keys of the query's own group; the upper half of the heads uses groups shifted by half a group.

    Give ``groups`` (per row of the configured length, default 4) or ``group_size`` (even, in tokens).
    ``sinks`` first tokens of each document stay visible to all its queries; 0 is the published method, the
    default of 4 starts training much closer to the model that it adapts. Serves training only: while
    decoding, older tokens would change their group as the text grows.
    """

    phases: ClassVar[tuple[Phase, ...]] = ("train",)

    method: Literal["s2"] = "s2"
    groups: Int | None = Field(default=None, ge=1)
    group_size: Int | None = Field(default=None, ge=2, multiple_of=2)
    sinks: Int = Field(default=4, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _one_of(cls, given: Any) -> Any:
        if isinstance(given, dict):
            if given.get("groups") is not None and given.get("group_size") is not None:
                raise ValueError("takes either groups or group_size, not both")
            if given.get("groups") is None and given.get("group_size") is None:
                return {**given, "groups": 4}
        return given

    def check(self, length: int) -> None:
        """Groups must fit into the row."""
        if self.group_size is not None and self.group_size > length:
            raise ValueError(f"group_size {self.group_size} is larger than the row of {length} tokens")
        if self.groups is not None and 2 * self.groups > length:
            raise ValueError(f"{self.groups} groups do not fit into a row of {length} tokens (2 tokens each)")

    def pattern(self, length: int) -> AttentionPattern:
        """The S2 pattern with its group size resolved for rows of ``length`` tokens."""
        from longspan.ops import AttentionPattern

        self.check(length)
        if self.group_size is not None:
            return AttentionPattern.s2(group_size=self.group_size, sinks=self.sinks)
        return AttentionPattern.s2(groups=self.groups, sinks=self.sinks).resolve(length)
