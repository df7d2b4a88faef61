"""Deep models from two shallow ones, and the longest rows that fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from transformers import LlamaConfig

from longspan.plan import Machine, Prediction, Subject, largest_length, predict
from longspan.plan.length import search
from longspan.recipe import Recipe
from longspan.train.optimizer import build_optimizer


def subject(layers: int = 9, patched: bool = True, **changes: Any) -> Subject:
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=256,
    )
    recipe = Recipe.model_validate({"data": {"length": 512}, **changes})
    return Subject(recipe, config, build_optimizer, Machine("cpu", 1, 32), patched)


@pytest.mark.parametrize("recompute", ["none", "mlp", "mlp+qkv", "layer"])
@pytest.mark.parametrize("adapter", [{"method": "none"}, {"method": "lora", "dropout": 0.1}], ids=["full", "lora"])
def test_two_depths_tell_any_other(adapter: dict[str, Any], recompute: str) -> None:
    asked = subject(adapter=adapter, memory={"recompute": recompute})
    whole, two = predict(asked, extrapolate=False), predict(asked)
    assert two.peak == whole.peak
    assert two.parts == whole.parts


def test_also_of_plain_hugging_face() -> None:
    asked = subject(patched=False)
    assert predict(asked).peak == predict(asked, extrapolate=False).peak


def test_a_shallow_model_is_run_as_it_is() -> None:
    asked = subject(layers=3)
    assert predict(asked) == predict(asked, extrapolate=False)


def exactly(peak: Callable[[int], int], budget: int, most: int = 4096) -> int | None:
    return next((n for n in range(most, 0, -1) if peak(n) <= budget), None)


@pytest.mark.parametrize("start", [1, 7, 64, 900])
@pytest.mark.parametrize("budget", [50, 99, 100, 1234, 5000, 20000, 10**9])
@pytest.mark.parametrize(
    "peak",
    [
        lambda n: 90 + 10 * n,
        lambda n: 90 + 10 * n + max(0, n - 300) * 7,
        lambda n: 90 + 10 * (-(-n // 32)) * 32,
        lambda n: 90 + n * n // 40,
    ],
)
def test_the_search_is_exact(peak: Callable[[int], int], budget: int, start: int) -> None:
    calls = []
    assert search(lambda n: calls.append(n) or peak(n), budget, start, 4096) == exactly(peak, budget)  # type: ignore[func-returns-value]


def test_the_search_is_short_where_the_peak_is_affine() -> None:
    calls: list[int] = []
    assert search(lambda n: calls.append(n) or 1000 + 37 * n, 10**6, 64, 1 << 16) == 27000  # type: ignore[func-returns-value]
    assert len(calls) <= 5


def test_the_longest_rows_fit_and_longer_ones_do_not() -> None:
    asked, budget = subject(layers=5, memory={"recompute": "layer"}), 100 << 20

    def peak(length: int) -> Prediction:
        return predict(asked.replace({"data.length": length}))

    longest = largest_length(asked, budget)
    assert longest is not None
    assert longest % 64 == 0
    assert peak(longest).peak <= budget < peak(longest + 64).peak


def test_no_rows_fit() -> None:
    assert largest_length(subject(layers=2), 1 << 20) is None


def test_a_group_size_larger_than_the_first_rows() -> None:
    """The search then starts at the recipe's own length."""
    attention = {"train": {"method": "s2", "group_size": 6144}}
    asked = subject(layers=2, attention=attention, data={"length": 6144})
    assert (largest_length(asked, 1 << 30) or 0) >= 6144
