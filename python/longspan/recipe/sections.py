"""The sections of a recipe that belong to no axis: lean, memory, trainer; and the ones that group methods."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from longspan.attention import AttentionMethod, FullAttention
from longspan.ffn import DenseFeedForward, FeedForwardMethod
from longspan.recipe.sizes import parse_size
from longspan.registry import Bool, Choice, Config, Float, Int, one_of
from longspan.updates import AdamW, ParameterGroup, UpdateEngine, UpdateHook, UpdateTransform

RECOMPUTE = ("none", "mlp", "mlp+qkv", "layer")
OFFLOAD = ("none", "cpu")
AUTO = "auto"
FFN_EVAL = ("dense", "routed")
SCHEDULES = ("constant", "linear", "cosine")


class AttentionSection(Config):
    """Which pairs attend while training, while reading a prompt, and while generating."""

    train: Annotated[SerializeAsAny[AttentionMethod], one_of("attention", "train")] = FullAttention()
    prefill: Annotated[SerializeAsAny[AttentionMethod], one_of("attention", "prefill")] = FullAttention()
    decode: Annotated[SerializeAsAny[AttentionMethod], one_of("attention", "decode")] = FullAttention()


class FeedForwardSection(Config):
    """Which weight blocks are computed while training; ``eval`` routed evaluates and generates with the same ones."""

    train: Annotated[SerializeAsAny[FeedForwardMethod], one_of("ffn")] = DenseFeedForward()
    eval: Annotated[str, Choice("ffn.eval", FFN_EVAL)] = "dense"

    @field_validator("eval", mode="before")
    @classmethod
    def _eval(cls, given: Any) -> Any:
        return given["method"] if isinstance(given, dict) and set(given) == {"method"} else given

    @model_validator(mode="after")
    def _fits_together(self) -> FeedForwardSection:
        if self.eval != "dense" and self.train.method != self.eval:
            raise ValueError(
                f"eval is {self.eval}, and train is {self.train.method}: give train: {{method: {self.eval}}}"
            )
        return self


class UpdateSection(Config):
    """Which parameters change, and how: one engine, then transforms, groups and hooks in order."""

    engine: Annotated[SerializeAsAny[UpdateEngine], one_of("update_engine")] = AdamW()
    transforms: tuple[Annotated[SerializeAsAny[UpdateTransform], one_of("update_transform")], ...] = ()
    groups: tuple[ParameterGroup, ...] = ()
    hooks: tuple[Annotated[SerializeAsAny[UpdateHook], one_of("update_hook")], ...] = Field(default=(), max_length=1)

    @model_validator(mode="after")
    def _fits_together(self) -> UpdateSection:
        names = [transform.method for transform in self.transforms]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"transforms has {name} twice; give it once")
        choosing = [name for name in names if name in ("gmt", "hft", "neft")]
        if len(choosing) > 1:
            raise ValueError(f"{' and '.join(choosing)} each say what takes part; give one of them")
        if self.engine.forward_only and (
            with_gradients := [name for name in names if name in ("gmt", "component_clip")]
        ):
            raise ValueError(
                f"engine {self.engine.method} has no gradients for {' and '.join(with_gradients)}; give engine adamw "
                "or sgd"
            )
        if any(group.keep_ratio is not None for group in self.groups) and "gmt" not in names:
            raise ValueError("a group has a keep_ratio, which only the transform gmt reads; add it")
        return self


class LeanSection(Config):
    """Which lean parts replace Hugging Face's; ``keep_logits`` returns logits beside the training loss."""

    norm: Bool = True
    mlp: Bool = True
    rope: Bool = True
    lora: Bool = True
    loss: Bool = True
    keep_logits: Bool = False


class MemorySection(Config):
    """Memory against time: what is computed again in the backward pass, what leaves the device, a budget.

    ``recompute`` auto takes the least of none, mlp, mlp+qkv and layer whose predicted peak fits ``budget``: a size such
    as 24GiB, 8GB or a number of bytes; null is nine tenths of the memory that is free when the run starts. A run whose
    prediction is above a budget that is given does not start. ``offload`` cpu keeps what decoder layers save for the
    backward in the host's pinned memory, copied beside the computation; it needs a GPU.
    """

    recompute: Annotated[str, Choice("recompute", (*RECOMPUTE, AUTO))] = "none"
    offload: Annotated[str, Choice("offload", OFFLOAD)] = "none"
    budget: Any = None

    @field_validator("budget")
    @classmethod
    def _budget(cls, given: Any) -> Any:
        if given is not None:
            parse_size(given)
        return given

    @property
    def budget_bytes(self) -> int | None:
        """The budget in bytes, None when none is given."""
        return None if self.budget is None else parse_size(self.budget)


class TrainerSection(Config):
    """The loop. A step is ``accumulate`` batches of ``batch`` rows; ``output`` is the run's folder.

    ``warmup`` counts steps. ``clip`` bounds the gradient norm, 0 turns it off. ``save_every`` 0 saves at the
    end only.
    """

    steps: Int = Field(default=100, ge=1)
    batch: Int = Field(default=1, ge=1)
    accumulate: Int = Field(default=1, ge=1)
    schedule: Annotated[str, Choice("schedule", SCHEDULES)] = "constant"
    warmup: Int = Field(default=0, ge=0)
    clip: Float = Field(default=1.0, ge=0, allow_inf_nan=False)
    log_every: Int = Field(default=1, ge=1)
    save_every: Int = Field(default=0, ge=0)
    output: Annotated[str, Field(min_length=1)] = "runs/demo"
