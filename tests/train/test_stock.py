"""Law: the baseline of a comparison is the stock model, and longspan with dense attention makes the same losses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longspan.recipe import Recipe
from longspan.train.run import prepare
from runs import run_quietly

Make = Callable[..., dict[str, Any]]


def test_dense_longspan_makes_the_losses_of_the_stock_model(make: Make, cache: Path) -> None:
    adapter = {"method": "lora", "rank": 2, "alpha": 4, "also_train": ["embeddings", "norms"]}  # masks would differ
    options: dict[str, Any] = {"attention": {"train": {"method": "full"}}, "adapter": adapter}
    ours = run_quietly(make(output="ours", **options), cache, evaluate=True)
    stock = run_quietly(make(output="stock", **options), cache, evaluate=True, patched=False)
    assert stock.losses == pytest.approx(ours.losses, rel=1e-4)
    assert stock.held_out_before == pytest.approx(ours.held_out_before, rel=1e-5)
    assert stock.held_out_after == pytest.approx(ours.held_out_after, rel=1e-4)
    assert stock.trainable == ours.trainable


def test_the_stock_model_keeps_transformers_attention(make: Make, cache: Path) -> None:
    model, _ = prepare(Recipe.model_validate(make()), cache_dir=cache, patched=False)
    assert model.config._attn_implementation == "sdpa"


def test_a_stock_run_is_not_resumed_as_a_patched_one(make: Make, cache: Path) -> None:
    constant = {"schedule": "constant"}
    run_quietly(make(trainer={**constant, "steps": 2}), cache, patched=False)
    with pytest.raises(ValueError, match="was written with patched=False; resume it the same way"):
        run_quietly(make(trainer={**constant, "steps": 3}), cache, resume=True)
