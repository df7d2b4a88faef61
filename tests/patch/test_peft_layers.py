"""PEFT's LoRA layers in patched decoder layers: taken over where they are plain, left to PEFT and named where not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import longspan
from families import assert_all_as_good, build, double, gradients, recipe, tokens
from longspan.patch.layers import parts

EVERY = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def randomise(model: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def lora(**options: Any) -> PeftModel:
    config = LoraConfig(**({"r": 4, "target_modules": EVERY, "task_type": "CAUSAL_LM"} | options))
    return randomise(get_peft_model(build("llama"), config)).train()


def run(model: Any, seed: int = 3) -> dict[str, torch.Tensor]:
    """Loss and gradients of one step."""
    ids = tokens(2, 30)
    torch.manual_seed(seed)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return {"loss": loss.detach()} | gradients(model)


def assert_runs_as_good(model: Any, twin: Any) -> None:
    assert_all_as_good(run(model), run(twin), run(double(twin)))


VARIANTS: dict[str, tuple[dict[str, Any], str]] = {
    "rslora": ({"use_rslora": True}, ""),
    "several": ({"rank_pattern": {"k_proj": 2}, "alpha_pattern": {"q_proj": 3}}, ""),
    "some": ({"target_modules": ["v_proj", "up_proj"]}, ""),
    "dora": ({"use_dora": True}, "called as it is: its variant DoraLinearVariant is left to PEFT"),
    "bias": ({"lora_bias": True}, "called as it is: its adapter has a bias (lora_bias)"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name: str) -> None:
    """Every variant trains as PEFT trains it; what the op does not know is named in the report."""
    options, reason = VARIANTS[name]
    model = lora(**options)
    twin = copy.deepcopy(model)
    report = longspan.patch(model, recipe())
    assert report.skipped.get("model.layers.0.self_attn.q_proj", "") == reason
    assert_runs_as_good(model, twin)


def test_plain_adapters_never_run_as_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    from peft.tuners.lora import Linear

    model = lora()
    longspan.patch(model, recipe())
    called = []
    monkeypatch.setattr(Linear, "forward", lambda self, x: called.append(self))
    run(model)
    assert not called


@pytest.mark.parametrize(
    "state",
    [
        lambda model: model.base_model.disable_adapter_layers(),
        lambda model: model.merge_adapter(),
        lambda model: model.set_adapter("second"),
        lambda model: model.base_model.set_adapter(["default", "second"]),
        lambda model: model.delete_adapter("default"),
    ],
    ids=["disabled", "merged", "another", "two at once", "deleted"],
)
def test_the_state_of_adapters_is_read_at_every_call(state: Callable[[Any], None]) -> None:
    model = lora()
    model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    randomise(model)
    twin = copy.deepcopy(model)
    longspan.patch(model, recipe())
    run(model)
    for each in (model, twin):
        state(each)
        for parameter in each.get_base_model().model.norm.parameters():
            parameter.requires_grad_(True)  # something that trains in every state
    assert_runs_as_good(model, twin)


def test_merging_and_unmerging_go_on_working() -> None:
    model = lora()
    twin = copy.deepcopy(model)
    longspan.patch(model, recipe())
    for each in (model, twin):
        each.merge_adapter()
        each.unmerge_adapter()
    assert_runs_as_good(model, twin)


def test_saved_adapters_are_pefts(tmp_path: Path) -> None:
    model = lora()
    longspan.patch(model, recipe())
    model.save_pretrained(tmp_path)
    plain = PeftModel.from_pretrained(build("llama"), tmp_path, is_trainable=True).train()
    assert_runs_as_good(model, plain)


def test_dropout_drops_the_share_it_should_and_is_off_in_evaluation() -> None:
    model = lora(lora_dropout=0.25)
    twin = copy.deepcopy(model)
    longspan.patch(model, recipe())
    first, second, again = run(model, 1), run(model, 2), run(model, 1)
    assert not torch.equal(first["loss"], second["loss"])
    assert all(torch.equal(first[name], again[name]) for name in first)
    ids = tokens(1, 30)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(ids).logits, twin.eval()(ids).logits, rtol=1e-4, atol=1e-4)
        # One draw is unbiased in the linear map alone: the mean of q over many masks is q without dropout.
        layer, x = model.get_base_model().model.layers[0].self_attn.q_proj.train(), torch.randn(1, 64)
        found = parts.linear_of(layer)
        assert found is not None
        projection, p = found
        assert p == 0.25
        rows = longspan.ops.norm_lora_linear(x.expand(20000, -1), [projection], dropout_p=p)[0].mean(0)
        torch.testing.assert_close(rows, layer.eval()(x)[0], rtol=0.05, atol=0.1)


@pytest.mark.parametrize("recompute", ["mlp", "mlp+qkv", "layer"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recompute_draws_the_same_masks(recompute: str, dropout: float) -> None:
    """Finite differences along the gradient: another mask in the backward would be off by tens of percent."""
    model = lora(lora_dropout=dropout).double()
    longspan.patch(model, recipe(memory={"recompute": recompute}))
    found = run(model)
    step, names = 1e-5, [name for name, p in model.named_parameters() if p.requires_grad]
    slope = sum(found[name].square().sum() for name in names)
    losses = []
    for sign in (1, -1):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.add_(found[name], alpha=sign * step)
        losses.append(run(model)["loss"])
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.add_(found[name], alpha=-sign * step)
    torch.testing.assert_close((losses[0] - losses[1]) / (2 * step), slope, rtol=5e-3, atol=0)


def test_bfloat16_base_with_float32_adapters() -> None:
    model = randomise(
        get_peft_model(build("llama").bfloat16(), LoraConfig(r=4, target_modules=EVERY, task_type="CAUSAL_LM"))
    ).train()
    assert {p.dtype for n, p in model.named_parameters() if "lora_" in n} == {torch.float32}
    twin = copy.deepcopy(model)
    longspan.patch(model, recipe())
    ours, stock = run(model), run(twin)
    assert {name: value.dtype for name, value in ours.items()} == {name: value.dtype for name, value in stock.items()}
    assert_all_as_good(ours, stock, run(double(twin)), eps=0.01)
