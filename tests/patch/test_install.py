"""The patch itself: its report, what it registers, recipes of both forms, saving, compiling."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import longspan
from families import build, recipe, tokens
from longspan.patch import PatchReport, unpatch


def test_report() -> None:
    model = build("llama")
    attention = {"train": {"method": "s2", "groups": 4, "sinks": 4}}
    report = longspan.patch(model, longspan.Recipe.model_validate(recipe(attention=attention)))
    assert isinstance(report, PatchReport)
    what = "attention: s2(group_size=24, groups=4, sinks=4) in training, full in prefill and decode"
    assert report.replaced == {
        "model.layers.0.self_attn": what,
        "model.layers.1.self_attn": what,
        "model.layers.0": "decoder layer: norm, mlp, rope, lora",
        "model.layers.1": "decoder layer: norm, mlp, rope, lora",
        "model.norm": "norm",
        "forward": "loss: head and cross-entropy in segments of 2048 rows",
    }
    text = str(report)
    assert "longspan.patch: LlamaForCausalLM" in text
    assert "model.layers.0.self_attn .. model.layers.1.self_attn (2 modules)" in text
    for name, reason in report.skipped.items():
        assert f"{name}: {reason}" in text


def test_registered_once() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    longspan.patch(build("llama"), recipe())
    first = dict(AttentionInterface._global_mapping), dict(AttentionMaskInterface._global_mapping)
    longspan.patch(build("llama"), recipe())
    assert first == (AttentionInterface._global_mapping, AttentionMaskInterface._global_mapping)
    added = [name for name in first[0] if "longspan" in name]
    assert added == [name for name in first[1] if "longspan" in name] == ["longspan"]


def test_wrong_recipe_changes_nothing() -> None:
    model = build("llama")
    with pytest.raises(ValueError, match="lenght"):
        longspan.patch(model, {"data": {"lenght": 96}})
    assert model.config._attn_implementation == "sdpa"


def test_unpatch_of_an_unpatched_model_does_nothing() -> None:
    model = build("llama")
    unpatch(model)
    assert model.config._attn_implementation == "sdpa"


def test_saved_model_is_plain(tmp_path: Path) -> None:
    """A patched model saves as any other: nothing of ours in its files."""
    from transformers import AutoModelForCausalLM

    model = build("llama")
    ids = tokens(1, 20)
    expected = model(ids).logits
    longspan.patch(model, recipe())
    model.save_pretrained(tmp_path)
    assert "longspan" not in (tmp_path / "config.json").read_text()
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path).eval()(ids).logits, expected)


def test_random_numbers_are_left_alone() -> None:
    """A seeded run is the same with and without the patch, even where a forward draws in evaluation."""
    model = build("opt", dropout=0.3).train()
    model.get_input_embeddings().register_forward_hook(lambda *_: torch.rand(1) and None)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    longspan.patch(model, recipe())
    assert torch.equal(torch.rand(4), expected)


def test_the_package_is_the_function() -> None:
    """``longspan.patch(...)`` works after ``import longspan.patch`` as well."""
    import importlib

    report = importlib.import_module("longspan.patch")(build("llama"), recipe())
    assert report.replaced


def test_compiles_as_one_graph() -> None:
    """torch.compile(fullgraph=True): logits in evaluation, loss and gradients in training with S2."""
    torch._dynamo.reset()
    model = build("mistral_window")
    model.config.use_cache = False
    longspan.patch(model, recipe(32, attention={"train": {"method": "s2", "groups": 2, "sinks": 1}}))
    ids = tokens(2, 32)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    options = {"attention_mask": mask}
    compiled = torch.compile(lambda **given: model(**given), backend="aot_eager", fullgraph=True)
    given, expected = compiled(input_ids=ids, **options).logits, model(input_ids=ids, **options).logits
    torch.testing.assert_close(given[mask.bool()], expected[mask.bool()], rtol=1e-4, atol=1e-5)
    model.train()
    given, expected = (
        call(input_ids=ids, labels=ids.masked_fill(mask == 0, -100), **options).loss
        for call in (compiled, lambda **arguments: model(**arguments))
    )
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)
    given.backward()


def test_the_demo_in_bfloat16_is_served() -> None:
    """Thirty layers in half precision: differences of single parts stay small where those of the logits do not."""
    from longspan.train.model import load_model

    model, _ = load_model("demo", "bfloat16")
    report = longspan.patch(model, recipe())
    assert len(report.replaced) == 30 + 30 + 2
