"""Product-quantised sparse attention (SPT, Gui et al. 2023, arXiv 2312.10365), and an asymmetric score for it."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from longspan.attention.base import AttentionMethod, Phase
from longspan.registry import Bool, Choice, Float, Int, register

FORMS = ("mask", "list", "block")
SCORERS = ("adc", "match")
AUTO = "auto"
LEAST = 16  # keys
BLOCK = 64  # tokens, of form block


@register("attention", "pq")
class PQAttention(AttentionMethod):
    """The keys with the highest scores of each query: keep_ratio of the configured length, one number for the run.

    Keys are written in codes of `codewords` codewords in `subspaces` pieces ("auto": of 8 components). scorer "adc":
    the query itself with the key's codewords, a codebook a key head; "match": how many codes of query and key are
    equal, one codebook for both (the published method, with sinks: 0 and window: 0). The first `sinks` tokens of a
    document and a `window` of the last ones (a share of the budget) are kept in any case and count.

    form "mask" evaluates the choice inside the dense tiles: exact, O(T) memory, no arithmetic saved; "list" reads
    listed keys; "block" keeps keep_ratio of the blocks of 64 keys, and its own, for each block of 64 queries and skips
    the others.

    Codewords come from k-means of the first batch and are trained by `ops.pq_loss` times loss_weight in one of
    `refresh_every` steps; commit: let it bend queries and keys as well (SPT's code).
    """

    phases: ClassVar[tuple[Phase, ...]] = ("train", "prefill")

    method: Literal["pq"] = "pq"
    form: Annotated[str, Choice("form", FORMS)] = "mask"
    scorer: Annotated[str, Choice("scorer", SCORERS)] = "adc"
    keep_ratio: Float = Field(default=0.125, gt=0, le=1)
    subspaces: Any = AUTO
    codewords: Int = Field(default=16, ge=1, le=256)
    refresh_every: Int = Field(default=20, ge=1)
    sinks: Int = Field(default=4, ge=0)
    window: Float = Field(default=0.25, ge=0, le=1)
    loss_weight: Float = Field(default=0.01, ge=0)
    commit: Bool = False

    @field_validator("subspaces")
    @classmethod
    def _subspaces(cls, given: Any) -> Any:
        whole = isinstance(given, int) and not isinstance(given, bool)
        if given != AUTO and not (whole and 1 <= given <= 64):
            raise ValueError(f"subspaces is {given!r}; allowed: {AUTO}, or 1 to 64")
        return given

    def budget(self, length: int) -> int:
        """Keys (blocks, in form block) that a query (a block of them) keeps of rows of `length` tokens."""
        if self.form == "block":
            return min(-(-length // BLOCK), math.ceil(self.keep_ratio * -(-length // BLOCK)) + 1)
        return min(length, max(LEAST, math.ceil(self.keep_ratio * length)))

    def near(self, length: int) -> tuple[int, int]:
        """Of those: the last ones (the query's own among them), and the first ones of its document."""
        budget = self.budget(length)
        if self.form == "block":
            return max(1, round(self.window * budget)), int(self.sinks > 0)
        return round(self.window * budget), self.sinks

    def check(self, length: int) -> None:
        """What is kept in any case must leave room for a choice."""
        budget, (recent, first) = self.budget(length), self.near(length)
        if recent + first > budget:
            unit = "blocks" if self.form == "block" else "keys"
            raise ValueError(
                f"a window of {recent} and {first} sinks are more than the {budget} {unit} of keep_ratio "
                f"{self.keep_ratio:g}; give a larger keep_ratio, or a smaller window or sinks"
            )
