"""Token elimination (LeMo, Wang et al. 2025, arXiv 2501.09767), and the dense forward with the gradient of some."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from longspan.registry import Choice, Float, Int, register
from longspan.tokens.base import TokenMethod

if TYPE_CHECKING:
    from torch import Tensor

    from longspan.ops import TokenBlocks

SELECTORS = ("predictor", "scores", "random", "token_loss", "gradient")
FORWARDS = ("eliminate", "dense")
MLPS = ("dense", "skip", "rows", "cols")
LATER_HALF, THRESHOLDS, UNTRAINED = "later-half", "thresholds", "untrained"
# Known before a layer runs; the others are known when its gradient arrives.
BEFORE = ("predictor", "scores", "random")


@register("tokens", "lemo")
class LeMo(TokenMethod):
    """In some layers only the chosen blocks of tokens take part in attention; training only, evaluation is dense.

    forward: "eliminate" is the published method: other tokens are neither queries nor keys and ride the residual
    stream. "dense" runs the layer on all tokens, saves and differentiates the chosen ones alone.

    keep_ratio: share of the blocks of each document (or sample) that are kept. layers: "later-half" (from
    ceil(L/2)-1 to the last but one of L), a list of layers, or "thresholds": those, and per-layer thresholds instead of
    the ratio, of the file ``thresholds`` (`longspan lemo thresholds` writes it). block: tokens a block. force_first,
    force_last: blocks at a document's ends that are kept in any case.

    selector: "predictor" (trained by `longspan lemo train-predictor`; ``predictor`` is its file, or "untrained" for its
    cost alone), "scores" (the scores that it predicts, at the price of a forward attention), "random", "token_loss"
    (the tokens' losses) or "gradient" (norm of the layer's incoming gradient); the last two are known in the backward
    and need forward: dense.

    mlp: "dense"; "skip" (other tokens go around it); "rows" (dense forward, saved and differentiated for chosen
    tokens); "cols" (dense forward, differentiated through the ``mlp_ratio`` of the channels with the largest norms;
    needs frozen weights). mlp_ratio: default keep_ratio for rows, 0.2 for cols. With selector predictor or scores,
    "rows" keeps the blocks with the largest hidden activation; else, and with "skip", those of the attention.
    """

    method: Literal["lemo"] = "lemo"
    keep_ratio: Float = Field(default=0.4, gt=0, le=1)
    layers: Any = LATER_HALF
    thresholds: Annotated[str, Field(min_length=1)] | None = None
    block: Int = Field(default=64, ge=1, le=256)
    force_first: Int = Field(default=0, ge=0)
    force_last: Int = Field(default=0, ge=0)
    forward: Annotated[str, Choice("forward", FORWARDS)] = "dense"
    selector: Annotated[str, Choice("selector", SELECTORS)] = "random"
    predictor: Annotated[str, Field(min_length=1)] | None = None
    mlp: Annotated[str, Choice("mlp", MLPS)] = "rows"
    mlp_ratio: Float | None = Field(default=None, gt=0, le=1)

    @field_validator("layers")
    @classmethod
    def _layers(cls, given: Any) -> Any:
        if given in (LATER_HALF, THRESHOLDS):
            return given
        indices = list(given) if isinstance(given, list | tuple) else []
        plain = all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in indices)
        if not indices or not plain or len(set(indices)) < len(indices):
            raise ValueError(
                f"layers is {given!r}; allowed: {LATER_HALF}, {THRESHOLDS}, or a list of different layer numbers from 0"
            )
        return tuple(sorted(indices))

    @model_validator(mode="after")
    def _fits_together(self) -> LeMo:
        if (self.layers == THRESHOLDS) != (self.thresholds is not None):
            raise ValueError(f"layers: {THRESHOLDS} and the key thresholds (a file) go together; give both or none")
        if self.thresholds is not None and self.selector not in ("predictor", "scores"):
            raise ValueError(f"thresholds are of scores; selector {self.selector!r} has none, use predictor or scores")
        if (self.selector == "predictor") != (self.predictor is not None):
            raise ValueError(
                f"selector is {self.selector!r} and predictor {self.predictor!r}; selector: predictor needs a file of "
                f"`longspan lemo train-predictor` (or {UNTRAINED!r}), and no other selector takes one"
            )
        if self.forward == "eliminate" and self.selector not in BEFORE:
            raise ValueError(
                f"selector {self.selector!r} is known in the backward only; forward: eliminate takes "
                f"{', '.join(BEFORE)}"
            )
        if self.forward == "dense" and self.mlp == "skip":
            raise ValueError("mlp: skip changes the forward; forward: dense takes mlp: dense, rows or cols")
        return self

    @property
    def mlp_share(self) -> float:
        """Share of rows (or channels, for cols) that the feed-forward keeps."""
        if self.mlp_ratio is not None:
            return self.mlp_ratio
        return 0.2 if self.mlp == "cols" else self.keep_ratio

    def block_scores(self, rows: Tensor, blocks: TokenBlocks) -> Tensor | None:
        """Scores [N] of the blocks of a layer's input, rows [M,C], in place of the selector's; None asks the selector.

        A subclass that overrides this and registers itself is a token method (docs/extending.md).
        """
        return None

    @property
    def chooser(self) -> str:
        """What chooses the blocks: the selector, or the scores of a subclass."""
        return self.selector if type(self).block_scores is LeMo.block_scores else "its own scores"

    def chosen_layers(self, count: int) -> tuple[int, ...]:
        """Numbers of the layers of a model of `count` where tokens are left out; of "thresholds", those it may name.

        Raises ValueError for a layer that the model does not have.
        """
        if self.layers == LATER_HALF:
            return tuple(range((count + 1) // 2 - 1, count - 1))
        if self.layers == THRESHOLDS:
            return tuple(range(count))
        if self.layers[-1] >= count:
            raise ValueError(f"tokens.layers names layer {self.layers[-1]}; the model has layers 0 to {count - 1}")
        return tuple(self.layers)
