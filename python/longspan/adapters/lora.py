"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685), optionally with trained embeddings and norms
(Chen et al. 2023, arXiv 2309.12307, section 3.3)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from longspan.adapters.base import AdapterMethod
from longspan.registry import Choice, Float, Int, register

ALSO_TRAIN = ("embeddings", "norms")


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name!r} is given more than once")
    return names


@register("adapters", "lora")
class LoraAdapter(AdapterMethod):
    """W x becomes W x + (alpha / rank) B A x on the target projections; A is [rank, in], B is [out, rank].

    ``targets`` are module names as PEFT matches them, ``also_train`` names further weights that train in
    full: ``embeddings`` (the input embedding, and the head where it is tied) and ``norms``.
    """

    method: Literal["lora"] = "lora"
    rank: Int = Field(default=8, ge=1)
    alpha: Float = Field(default=16, gt=0, allow_inf_nan=False)
    dropout: Float = Field(default=0.0, ge=0, lt=1)
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("q_proj", "k_proj", "v_proj", "o_proj")
    also_train: tuple[Annotated[str, Choice("part to train as well", ALSO_TRAIN)], ...] = ()

    @field_validator("targets")
    @classmethod
    def _targets(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        if any(not name.strip() for name in targets):
            raise ValueError("a target module name is empty")
        return _distinct(targets)

    @field_validator("also_train")
    @classmethod
    def _also_train(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _distinct(names)
