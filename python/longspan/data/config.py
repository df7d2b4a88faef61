"""The ``data`` section of a recipe."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from longspan.registry import Choice, Config, Int

FORMATS = ("text", "prompt_completion", "messages")
PACKINGS = ("documents", "none")


class DataConfig(Config):
    """What is trained on.

    ``train``: demo | a file or glob (.txt .jsonl .parquet) | a ``datasets`` name, as name[:config[:split]].
    ``held_out``: the share of documents kept for evaluation (0 keeps none), or a source as in ``train``.
    ``format``: records are {text} | {prompt, completion} | {messages}; labels follow from it.
    ``length``: tokens in a row; longer documents are cut into pieces.
    ``packing``: documents fills rows with whole documents or pieces, none puts one piece into each row.
    """

    train: str = Field(default="demo", min_length=1)
    held_out: float | str = 0.05
    format: Annotated[str, Choice("data format", FORMATS)] = "text"
    length: Int = Field(default=4096, ge=16)
    packing: Annotated[str, Choice("packing", PACKINGS)] = "documents"

    @field_validator("held_out", mode="before")
    @classmethod
    def _held_out(cls, given: Any) -> Any:
        if isinstance(given, str) and given:
            return given
        if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 <= given < 1:
            raise ValueError(f"must be a share of documents from 0 to below 1, or a file, not {given!r}")
        return float(given)

    @model_validator(mode="after")
    def _fits(self) -> DataConfig:
        for source in (self.train, self.held_out):
            plain = source == "demo" or (isinstance(source, str) and PurePath(source).suffix == ".txt")
            if plain and self.format != "text":
                raise ValueError(f"{source!r} holds plain text, so format must be text, not {self.format}")
        return self
