"""PEFT before or after the patch: one result."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import longspan
from families import assert_as_good, build, double, gradients, recipe, tokens

TARGETS = {
    "phi3": ["qkv_proj", "o_proj"],
    "gpt_neox": ["query_key_value", "dense"],
    "opt": ["q_proj", "out_proj"],
    "gpt2": ["c_attn"],
}


def lora(model: Any, targets: list[str], **options: Any) -> PeftModel:
    """A LoRA model whose adapters are not zero."""
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", **options))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return wrapped.train()


def run(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss of one step, and gradients by name."""
    ids = tokens(2, 30)
    loss = model(input_ids=ids, labels=ids.masked_fill(ids % 7 == 0, -100)).loss
    loss.backward()
    return loss.detach(), gradients(model)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
def test_before_and_after(family: str) -> None:
    targets = TARGETS.get(family, ["q_proj", "k_proj", "v_proj", "o_proj"])
    bare = build(family)
    patched_first = copy.deepcopy(bare)
    longspan.patch(patched_first, recipe())
    after = run(lora(patched_first, targets))
    wrapped = lora(copy.deepcopy(bare), targets)
    report = longspan.patch(wrapped, recipe())
    before = run(wrapped)
    assert torch.equal(before[0], after[0])
    assert before[1].keys() == after[1].keys()
    assert all(torch.equal(before[1][name], after[1][name]) for name in before[1])
    twin = lora(copy.deepcopy(bare), targets)
    exact = run(double(twin))
    baseline = run(twin)
    assert_as_good(before[0], baseline[0], exact[0])
    for name in exact[1]:
        assert_as_good(before[1][name], baseline[1][name], exact[1][name], eps=1e-5)
    report.undo()
    ids = tokens(1, 20)
    assert torch.equal(wrapped(input_ids=ids).logits, twin(input_ids=ids).logits)
    assert wrapped.config is wrapped.get_base_model().config


@pytest.mark.parametrize(
    ("targets", "options"),
    [
        (["q_proj", "lm_head"], {}),
        (["q_proj"], {"modules_to_save": ["lm_head"]}),
        (["q_proj"], {"modules_to_save": ["lm_head", "embed_tokens"]}),
    ],
)
def test_adapted_head(targets: list[str], options: dict[str, Any]) -> None:
    """LoRA on the head, and a head that PEFT keeps a trained copy of."""
    bare = build("llama", tie_word_embeddings=False)
    model, twin = lora(copy.deepcopy(bare), targets, **options), lora(copy.deepcopy(bare), targets, **options)
    longspan.patch(model, recipe())
    given, expected, exact = run(model), run(twin), run(double(twin))
    assert_as_good(given[0], expected[0], exact[0])
    assert given[1].keys() == expected[1].keys()
    assert any("lm_head" in name for name in given[1])
    for name in exact[1]:
        assert_as_good(given[1][name], expected[1][name], exact[1][name], eps=1e-5)
    ids = tokens(1, 12)
    with model.disable_adapter(), twin.disable_adapter():
        off = model(input_ids=ids, labels=ids).loss, twin(input_ids=ids, labels=ids).loss
    torch.testing.assert_close(*off)
    assert_as_good(off[0].detach(), off[1].detach(), double(bare).train()(ids, labels=ids).loss.detach())


def test_generate_and_merge() -> None:
    """Generation through PEFT, and merging a patched model, which stays patched."""
    model = lora(build("llama"), ["q_proj", "v_proj"]).eval()
    twin = copy.deepcopy(model)
    longspan.patch(model, recipe())
    ids = tokens(1, 10)
    options = {"input_ids": ids, "max_new_tokens": 8, "do_sample": False}
    assert torch.equal(model.generate(**options), twin.generate(**options))
    torch.testing.assert_close(
        model.merge_and_unload()(ids).logits, twin.merge_and_unload()(ids).logits, rtol=1e-4, atol=1e-5
    )
