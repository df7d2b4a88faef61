"""The decoder layers' own forward: every part can be switched off, and nothing about the model changes with it."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import longspan
from families import assert_all_as_good, assert_as_good, build, double, gradients, recipe, tokens

PARTS = ("norm", "mlp", "rope", "lora")
LABELS = torch.arange(44) % 5 == 0


def step(model: Any, ids: Tensor, **inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of one training step."""
    model.train()
    loss = model(ids, labels=ids.masked_fill(LABELS, -100), **inputs).loss
    loss.backward()
    return loss.detach(), gradients(model)


def assert_step_as_good(model: Any, twin: Any, **inputs: Any) -> None:
    """The patched model's step against its twin's, with the float64 model as the judge."""
    ids = tokens(2, 44)
    (loss, given), (stock, baseline), (exact, oracle) = (step(m, ids, **inputs) for m in (model, twin, double(twin)))
    assert_as_good(loss, stock, exact)
    assert given.keys() == baseline.keys()
    for name in given:
        assert_as_good(given[name], baseline[name], oracle[name], eps=1e-5)


class Calls(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[func._schema.name] = self.names.get(func._schema.name, 0) + 1
        return func(*args, **(kwargs or {}))


def calls(model: Any) -> dict[str, int]:
    with Calls() as counter:
        model.train()(tokens(1, 30), labels=tokens(1, 30)).loss.backward()
    return counter.names


def _switches() -> list[tuple[bool, ...]]:
    """All parts, none, each alone, all but each."""
    return [on for on in itertools.product([False, True], repeat=4) if sum(on) in (0, 1, 3, 4)]


@pytest.mark.parametrize("on", _switches(), ids=lambda on: "+".join(itertools.compress(PARTS, on)) or "none")
def test_switches(family: str, on: tuple[bool, ...]) -> None:
    """Any combination of lean parts trains as the model itself does."""
    model = build(family)
    twin = copy.deepcopy(model)
    report = longspan.patch(model, recipe(lean=dict(zip(PARTS, on, strict=True))))
    assert_step_as_good(model, twin)
    for name, wanted in zip(PARTS, on, strict=True):
        assert (f"lean.{name}" in report.skipped) == (not wanted)


def test_parts_really_run() -> None:
    """A switched-on part runs as longspan's op, a switched-off one as the model's own."""
    expected = {
        "norm": ("longspan::lora_linear_fwd", "aten::rsqrt"),
        "mlp": ("longspan::glu_fwd", "aten::silu"),
        "rope": ("longspan::rope_", "aten::neg"),
        "lora": ("longspan::lora_linear_fwd", "aten::mm"),
    }
    names = calls_of(dict.fromkeys(PARTS, True))
    # What is left to torch: the embedding, the tables' angles, adding up gradients.
    assert not {"aten::silu", "aten::addmm"} & names.keys()
    assert names["aten::mm"] == 1  # of the angles
    assert "aten::rsqrt" not in names
    assert names["longspan::lora_linear_fwd"] == names["longspan::lora_linear_bwd"] == 2 * 4
    for part, (ours, stock) in expected.items():
        without = calls_of(dict.fromkeys(PARTS, True) | {part: False})
        assert without.get(stock, 0) > names.get(stock, 0), part
        if part in ("mlp", "rope"):
            assert ours in names
            assert ours not in without


def calls_of(lean: dict[str, bool]) -> dict[str, int]:
    model = build("llama")
    longspan.patch(model, recipe(lean=lean))
    return calls(model)


@pytest.mark.parametrize("recompute", ["mlp", "mlp+qkv", "layer"])
def test_recompute_changes_no_result(family: str, recompute: str) -> None:
    """What is computed again gives the same loss to the bit and the same gradients up to the order of sums."""
    results = []
    for kind in ("none", recompute):
        model = build(family)
        longspan.patch(model, recipe(memory={"recompute": kind}))
        results.append(step(model, tokens(2, 44)))
    (loss, given), (again, recomputed) = results
    assert torch.equal(loss, again)
    for name in given:
        torch.testing.assert_close(recomputed[name], given[name], rtol=1e-4, atol=2e-6)


def test_recompute_survives_a_second_backward_and_notices_a_changed_input() -> None:
    model = build("llama").train()
    longspan.patch(model, recipe(memory={"recompute": "mlp+qkv"}))
    ids = tokens(1, 30)
    loss = model(ids, labels=ids).loss
    loss.backward(retain_graph=True)
    first = gradients(model)
    loss.backward()
    assert all(torch.equal(first[name], gradient) for name, gradient in gradients(model).items())
    embeddings = model.get_input_embeddings()(ids).detach()
    loss = model(inputs_embeds=embeddings, labels=ids).loss
    embeddings.add_(1)
    with pytest.raises(RuntimeError, match=r"changed in place|modified by an inplace operation"):
        loss.backward()


def test_positions_of_each_row() -> None:
    """Rows with positions of their own are rotated by them."""
    model = build("llama")
    twin = copy.deepcopy(model)
    longspan.patch(model, recipe())
    positions = torch.stack([torch.arange(44), torch.arange(44) + 50])
    assert_step_as_good(model, twin, position_ids=positions)


@pytest.mark.parametrize("switch", [False, True])
def test_autocast(family: str, switch: bool) -> None:
    """Under autocast linear layers compute in bfloat16, as they do without longspan."""
    model = build(family)
    twin = copy.deepcopy(model)
    longspan.patch(model, recipe(lean=dict.fromkeys(PARTS, switch)))
    ids, results = tokens(2, 44), []
    for each in (model, twin):
        with torch.autocast("cpu", torch.bfloat16):
            loss = each.train()(ids, labels=ids).loss
        loss.backward()
        results.append({"loss": loss.detach()} | gradients(each))
    oracle = double(twin).train()
    loss = oracle(ids, labels=ids).loss
    loss.backward()
    exact = {"loss": loss.detach()} | gradients(oracle)
    assert_all_as_good(*results, exact, eps=0.01)


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "phi3", "qwen3", "gpt2"])
def test_compiles_without_breaks(name: str) -> None:
    model = build(name).train()
    longspan.patch(model, recipe())
    ids = tokens(1, 30)
    model(ids, labels=ids).loss.backward()
    eager = gradients(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(ids, labels=ids).loss.backward()
    for key, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, eager[key], rtol=1e-5, atol=1e-6)


def test_a_hooked_module_is_called_and_named() -> None:
    """Hooks see what they would see without the patch, whatever part they are on."""
    model, seen = build("llama"), []
    twin = copy.deepcopy(model)
    for path in ("self_attn.k_proj", "mlp", "self_attn"):
        module = model.model.layers[1].get_submodule(path)
        module.register_forward_hook(lambda module, given, out, path=path: seen.append(path))
    report = longspan.patch(model, recipe())
    assert report.skipped["model.layers.1.self_attn.k_proj"] == "called as it is: it has hooks"
    seen.clear()
    assert_step_as_good(model, twin)
    assert {"self_attn", "mlp", "self_attn.k_proj"} == set(seen)


def test_a_layer_without_a_family_keeps_its_forward_and_is_named() -> None:
    from transformers import GraniteConfig, GraniteForCausalLM

    config = GraniteConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        residual_multiplier=0.3,
    )
    torch.manual_seed(0)
    model = GraniteForCausalLM(config)
    twin = copy.deepcopy(model)
    report = longspan.patch(model, recipe())
    reason = "GraniteDecoderLayer is not described in longspan.patch.layers.families; its own forward runs"
    assert report.skipped["model.layers.0"] == reason
    assert_step_as_good(model, twin)


def test_a_family_that_lies_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that computes something else than its description is found before it trains."""
    from longspan.patch.layers import families

    wrong = families._llama_like(norm2="input_layernorm")
    monkeypatch.setitem(families.FAMILIES, "LlamaDecoderLayer", wrong)
    model = build("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.input_layernorm.weight.uniform_(0.2, 3)
    with pytest.raises(ValueError, match=r"computes something else in model\.layers\.0 than longspan's decoder layers"):
        longspan.patch(model, recipe())
    assert "forward" not in model.model.layers[0].__dict__


def test_residual_dropout_is_the_models() -> None:
    """A branch's dropout draws what the model's own forward draws."""
    model = build("opt", dropout=0.3).train()
    twin = copy.deepcopy(model)
    longspan.patch(model, recipe())
    ids, losses = tokens(2, 44), []
    for each in (model, twin):
        torch.manual_seed(3)
        losses.append(each(ids, labels=ids).loss)
    torch.testing.assert_close(*losses)


def test_undo_while_checkpointing_is_on() -> None:
    model = build("qwen3").train()
    report = longspan.patch(model, recipe())
    model.gradient_checkpointing_enable()
    report.undo()
    assert all("forward" not in module.__dict__ for module in model.modules() if isinstance(module, nn.Module))
