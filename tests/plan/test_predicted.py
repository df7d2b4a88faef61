"""Predicted from the config alone against what real steps needed."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from longspan.recipe import Recipe
from measured import both, linear_names
from tests.patch.families import FAMILIES

SWITCHES = ("norm", "mlp", "rope", "lora", "loss")
RECOMPUTE = ("none", "mlp", "mlp+qkv", "layer")
PATTERNS = ("full", "s2")
FULL = {"method": "none"}
LORA = {"method": "lora", "rank": 8, "dropout": 0.1, "also_train": ["embeddings", "norms"]}


def recipe(family: str = "llama", adapter: dict[str, Any] = FULL, **changes: Any) -> Recipe:
    adapter = adapter if adapter["method"] == "none" else {**adapter, "targets": linear_names(family)}
    data = {"length": 320, "packing": "none"}
    return Recipe.model_validate({"data": data, "adapter": adapter, **changes})


def assert_predicted(family: str, asked: Recipe, *, patched: bool = True) -> None:
    prediction, measured = both(family, asked, patched=patched)
    assert prediction.peak == pytest.approx(measured, rel=0.03)
    assert sum(prediction.parts.values()) == prediction.peak


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str) -> None:
    """Each family with one adapter and dtype; all of them in the sweep."""
    place = list(FAMILIES).index(family)
    test_every_family(family, (FULL, LORA)[place // 2 % 2], ("float32", "bfloat16")[place % 2])


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("adapter", [FULL, LORA], ids=["full fine-tuning", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, adapter: dict[str, Any], dtype: str) -> None:
    place = list(FAMILIES).index(family)
    memory, pattern = {"recompute": RECOMPUTE[place % 4]}, {"train": {"method": PATTERNS[place % 2]}}
    assert_predicted(family, recipe(family, adapter, dtype=dtype, memory=memory, attention=pattern))


@pytest.mark.parametrize("recompute", ["none", "layer"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox", "gpt2"])
def test_plain_hugging_face(family: str, recompute: str) -> None:
    assert_predicted(family, recipe(family, LORA, memory={"recompute": recompute}), patched=False)


def test_plain_hugging_face_with_packed_documents_has_a_dense_mask() -> None:
    asked = recipe(data={"length": 512, "packing": "documents"})
    assert_predicted("llama", asked, patched=False)


@pytest.mark.parametrize("off", [*SWITCHES, "all"])
def test_switches(off: str) -> None:
    """Each part switched off once; with every recompute and pattern in the sweep."""
    place = len(off)
    test_every_switch(off, RECOMPUTE[place % 4], PATTERNS[place % 2])


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("recompute", RECOMPUTE)
def test_recompute(recompute: str, pattern: str) -> None:
    test_every_switch("", recompute, pattern)


@pytest.mark.sweep
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("off", SWITCHES)
def test_every_switch(off: str, recompute: str, pattern: str) -> None:
    lean = {name: off not in (name, "all") for name in SWITCHES}
    adapter = LORA if (RECOMPUTE.index(recompute) + len(off)) % 2 else FULL
    asked = recipe(
        adapter=adapter, lean=lean, memory={"recompute": recompute}, attention={"train": {"method": pattern}}
    )
    assert_predicted("llama", asked)


@pytest.mark.sweep
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("lean", list(itertools.product([True, False], repeat=5)), ids=str)
@pytest.mark.parametrize("adapter", [FULL, LORA], ids=["full fine-tuning", "lora"])
def test_every_combination(adapter: dict[str, Any], lean: tuple[bool, ...], recompute: str, pattern: str) -> None:
    switches = dict(zip(SWITCHES, lean, strict=True))
    changes = {"lean": switches, "memory": {"recompute": recompute}, "attention": {"train": {"method": pattern}}}
    assert_predicted("llama", recipe(adapter=adapter, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"trainer": {"batch": 3}},
        {"trainer": {"accumulate": 3}},
        {"trainer": {"accumulate": 2}, "dtype": "bfloat16"},
        {"trainer": {"clip": 0}},
        {"data": {"length": 321, "packing": "documents"}},
        {"update": {"engine": {"method": "sgd", "lr": 0.1, "momentum": 0.9}}},
        {"update": {"engine": {"method": "sgd", "lr": 0.1}}},
        {"update": {"transforms": [{"method": "gmt"}], "hooks": [{"method": "ema"}]}},
        {"update": {"transforms": [{"method": "component_clip", "max_norm": 1.0}]}, "dtype": "bfloat16"},
        {"update": {"groups": [{"layers": [0], "freeze": True}]}, "trainer": {"clip": 0}},
        {"update": {"engine": {"method": "mezo"}}, "dtype": "bfloat16"},
        {"update": {"engine": {"method": "es", "population": 2}}},
        {"lean": {"keep_logits": True}},
        {"positions": {"method": "linear", "factor": 2.0}},
        {"attention": {"train": {"method": "window", "size": 64}}},
    ],
    ids=str,
)
def test_the_rest_of_a_recipe(changes: dict[str, Any]) -> None:
    assert_predicted("llama", recipe(adapter=LORA if len(str(changes)) % 2 else FULL, **changes))


def test_two_threads() -> None:
    """Scratch of the CPU's kernels is a worker's."""
    torch.set_num_threads(2)
    assert_predicted("llama", recipe(adapter=LORA, memory={"recompute": "mlp"}))


def test_parts_are_those_of_the_model() -> None:
    """The parts of a Llama layer by hand, in elements a token: C=256, F=768, one hidden state is C."""
    asked = recipe(memory={"recompute": "none"})
    prediction, _ = both("llama", asked)
    tokens, layers, float32 = 320, 3, 4
    assert prediction.parts["feed-forward"] == layers * tokens * float32 * (
        3 * 768 + 1
    )  # gate, up, their product; rstd
    moments = 2 * prediction.parts["weights"]
    assert prediction.parts["optimizer"] == pytest.approx(moments, rel=0.01)
    mlp, _ = both("llama", asked.replace({"memory.recompute": "mlp"}))
    assert mlp.parts["feed-forward"] == 0


PQ = {"method": "pq", "keep_ratio": 0.2}


@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize(
    "attention", [PQ, PQ | {"scorer": "match"}, PQ | {"form": "list"}, PQ | {"form": "block"}], ids=str
)
def test_chosen_keys(attention: dict[str, Any], recompute: str) -> None:
    asked = recipe(adapter=LORA, attention={"train": attention}, memory={"recompute": recompute})
    assert_predicted("llama", asked)


@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_routed_layers(family: str, recompute: str) -> None:
    routed = {"train": {"method": "routed", "balance": 0.01}}
    assert_predicted(family, recipe(family, LORA, ffn=routed, memory={"recompute": recompute}))


LEMO = {"method": "lemo", "block": 16, "layers": [0, 1]}


@pytest.mark.parametrize(
    ("family", "method", "recompute"),
    [
        ("llama", {"forward": "eliminate", "selector": "predictor", "predictor": "untrained", "mlp": "dense"}, "none"),
        ("llama", {"forward": "eliminate", "selector": "scores", "mlp": "rows"}, "mlp"),
        ("qwen3", {"forward": "eliminate", "mlp": "skip"}, "mlp+qkv"),
        ("llama", {"forward": "dense", "mlp": "rows"}, "none"),
        ("phi3", {"forward": "dense", "mlp": "rows"}, "mlp+qkv"),
        ("gemma2", {"forward": "dense", "mlp": "dense"}, "layer"),
        ("llama", {"forward": "dense", "mlp": "rows", "selector": "gradient"}, "none"),
        ("gpt_neox", {"forward": "dense", "mlp": "dense", "selector": "token_loss"}, "none"),
    ],
)
def test_token_elimination(family: str, method: dict[str, Any], recompute: str) -> None:
    adapter = LORA | {"dropout": 0.0}
    assert_predicted(family, recipe(family, adapter, tokens=LEMO | method, memory={"recompute": recompute}))
