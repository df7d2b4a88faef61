"""The demo model: predicted from its config against real steps on its weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from longspan.memory import measure
from longspan.plan import predict
from longspan.recipe import Recipe
from longspan.train.model import load_model
from longspan.train.planning import subject_of
from measured import peak_of_steps, prepared

LORA = {"method": "lora", "rank": 8, "dropout": 0.05, "also_train": ["embeddings", "norms"]}


@pytest.mark.parametrize(
    ("length", "adapter", "changes"),
    [
        (512, LORA, {"memory": {"recompute": "none"}}),
        (1024, LORA, {"memory": {"recompute": "mlp+qkv"}, "attention": {"train": {"method": "s2"}}}),
        (512, {"method": "none"}, {"memory": {"recompute": "mlp"}}),
        (1024, LORA, {"memory": {"recompute": "layer"}}),
    ],
    ids=str,
)
def test_the_demo_model(length: int, adapter: dict[str, Any], changes: dict[str, Any]) -> None:
    torch.set_num_threads(2)
    recipe = Recipe.model_validate({"data": {"length": length}, "adapter": adapter, **changes})
    with measure() as m:
        prediction = predict(subject_of(recipe, device="cpu"))
    assert m.peak_bytes < 64 << 20  # nothing of the model's size exists while it is planned
    model, _ = load_model("demo", recipe.dtype)
    assert prediction.peak == pytest.approx(peak_of_steps(prepared(model, recipe), recipe), rel=0.03)
