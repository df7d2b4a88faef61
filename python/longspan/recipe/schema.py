"""The recipe: one answer per axis, and how to run them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, ValidationError, field_validator, model_validator

from longspan import folders
from longspan.adapters import AdapterMethod, LoraAdapter
from longspan.data.config import DataConfig
from longspan.objectives import Objective, SupervisedFineTuning
from longspan.positions import NoRescaling, PositionMethod
from longspan.recipe import yaml_io
from longspan.recipe.errors import RecipeError, explain
from longspan.recipe.sections import (
    AttentionSection,
    FeedForwardSection,
    LeanSection,
    MemorySection,
    TrainerSection,
    UpdateSection,
)
from longspan.registry import Config, Int, choose, one_of
from longspan.tokens import AllTokens, TokenMethod


class Recipe(Config):
    """A whole training run in one immutable object; ``Recipe.model_validate(dict)`` or ``Recipe.from_yaml(path)``.

    Raises `RecipeError` (a ``ValueError``) that names every wrong key in full and the nearest right one.
    """

    model: str = Field(default="demo", min_length=1)
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: Int = Field(default=0, ge=0, lt=2**32)
    data: DataConfig = DataConfig()
    attention: AttentionSection = AttentionSection()
    tokens: Annotated[SerializeAsAny[TokenMethod], one_of("tokens")] = AllTokens()
    ffn: FeedForwardSection = FeedForwardSection()
    positions: Annotated[SerializeAsAny[PositionMethod], one_of("positions")] = NoRescaling()
    adapter: Annotated[SerializeAsAny[AdapterMethod], one_of("adapters")] = LoraAdapter()
    update: UpdateSection = UpdateSection()
    objective: Annotated[SerializeAsAny[Objective], one_of("objective")] = SupervisedFineTuning()
    lean: LeanSection = LeanSection()
    memory: MemorySection = MemorySection()
    trainer: TrainerSection = TrainerSection()

    @field_validator("dtype", mode="before")
    @classmethod
    def _dtype(cls, name: Any) -> str:
        return choose("dtype", name, ("float32", "bfloat16"), ("float16",))

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        for phase in ("train", "prefill", "decode"):
            try:
                getattr(self.attention, phase).check(self.data.length)
            except ValueError as error:
                raise ValueError(f"attention.{phase}: {error}; data.length is {self.data.length}") from None
        mlp = getattr(self.tokens, "mlp", "dense")
        if self.ffn.train.method == "routed" and mlp not in ("dense", "skip"):
            raise ValueError(
                f"ffn.train routed and tokens.mlp {mlp} both choose what the feed-forward computes; use "
                "tokens.mlp: dense"
            )
        if self.update.engine.forward_only:
            self._refuse_training_methods()
        if self.trainer.warmup > self.trainer.steps:
            raise ValueError(f"trainer.warmup {self.trainer.warmup} is larger than trainer.steps {self.trainer.steps}")
        return self

    def _refuse_training_methods(self) -> None:
        for key, method, plain in (
            ("attention.train", self.attention.train.method, "full"),
            ("tokens", self.tokens.method, "none"),
            ("ffn.train", self.ffn.train.method, "dense"),
        ):
            if method != plain:
                raise ValueError(
                    f"update.engine {self.update.engine.method} runs the model as in evaluation, where {key} "
                    f"{method} has no part; use {key}: {{method: {plain}}}"
                )

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Recipe:
        """A recipe from a mapping (or from a recipe, which is returned)."""
        return cls._validate("recipe", obj, **options)

    @classmethod
    def _validate(cls, where: str, obj: Any, **options: Any) -> Recipe:
        try:
            return super().model_validate(obj, **options)
        except ValidationError as error:
            raise explain(where, error) from None

    @classmethod
    def from_yaml(cls, path: str | Path) -> Recipe:
        """Read a recipe file. Raises ``FileNotFoundError`` and `RecipeError`."""
        return cls._validate(str(path), yaml_io.read(path))

    def to_yaml(self, path: str | Path | None = None) -> str:
        """The whole recipe, defaults included, as YAML text; also written to ``path`` if one is given."""
        text = yaml_io.dump(self.model_dump(mode="json"))
        if path is not None:
            path = Path(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            folders.write_file(path, text)
        return text

    def replace(self, changes: Mapping[str, Any]) -> Recipe:
        """A copy with dotted keys changed: ``recipe.replace({"trainer.steps": 10})``. Checked like any recipe.

        A mapping with another ``method`` replaces the whole method; other values replace one key.
        """
        data = self.model_dump(mode="json")
        for dotted, value in changes.items():
            *parents, last = dotted.split(".")
            place: Any = data
            for depth, parent in enumerate(parents):
                if not isinstance(place.get(parent), dict):
                    path = ".".join(parents[: depth + 1])
                    raise RecipeError("recipe", [f"unknown key {dotted}; there is no section {path}"])
                place = place[parent]
            place[last] = value
        return type(self).model_validate(data)
