"""A routed feed-forward layer (SPT, Gui et al. 2023, arXiv 2312.10365): each row meets some blocks of hidden units."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from longspan.ffn.base import FeedForwardMethod
from longspan.registry import Bool, Choice, Float, Int, register

GATES = ("out", "none", "double")


@register("ffn", "routed")
class RoutedFeedForward(FeedForwardMethod):
    """Hidden units in `blocks` equal runs, of which a router chooses `active` for each token.

    gate: "out" scales a block's result by 2 sigmoid(logit); "none" leaves it; "double" is SPT's prototype, whose
    adapters cannot be merged. balance: weight of the loss that evens the blocks' loads, 0 for none. calibrate: fit the
    router to the sizes of the blocks' results on the first batch; otherwise it starts at random. ramp_steps: steps in
    which the number of active blocks falls from all to `active`.
    """

    method: Literal["routed"] = "routed"
    blocks: Int = Field(default=4, ge=1, le=8)
    active: Int = Field(default=2, ge=1)
    gate: Annotated[str, Choice("gate", GATES)] = "out"
    balance: Float = Field(default=0.01, ge=0)
    calibrate: Bool = True
    ramp_steps: Int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _fits_together(self) -> RoutedFeedForward:
        if self.active > self.blocks:
            raise ValueError(f"active is {self.active}; there are {self.blocks} blocks")
        return self

    def active_at(self, step: int) -> int:
        """How many blocks a token meets in the step with this number, from 0."""
        if step >= self.ramp_steps:
            return self.active
        return self.blocks - (self.blocks - self.active) * step // self.ramp_steps
