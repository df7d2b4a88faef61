"""Which pattern runs when: sparse in training, the recipe's prefill and decode patterns otherwise."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import longspan
from families import WINDOWED, assert_as_good, build, double, recipe, tokens

LENGTH = 48


def s2_visible(heads: int, length: int, group: int, sinks: int, window: int | None) -> Tensor:
    """LongLoRA's causal pattern by its definition, [H, T, T]."""
    shift = torch.where(torch.arange(heads) < heads // 2, 0, group // 2)[:, None, None]
    query, key = torch.arange(length)[None, :, None], torch.arange(length)[None, None, :]
    visible = ((query + shift) // group == (key + shift) // group) | (key < sinks)
    visible = visible & (key <= query)
    return visible if window is None else visible & (query - key < window)


def dense_mask(model: Any, visible: Tensor, window: int | None) -> Any:
    """The additive 4-D mask that plain transformers takes; one for each kind of layer where there are two."""
    additive = torch.where(visible, 0.0, torch.finfo(torch.float32).min)[None]
    kinds = set(getattr(model.config, "layer_types", None) or ())
    if len(kinds) < 2:
        return additive
    query, key = torch.arange(LENGTH)[:, None], torch.arange(LENGTH)[None, :]
    near = additive.masked_fill((query - key >= (window or LENGTH)), torch.finfo(torch.float32).min)
    return {"full_attention": additive, "sliding_attention": near}


def test_s2_only_in_training(family: str) -> None:
    model = build(family)
    twin = copy.deepcopy(model)
    longspan.patch(model, recipe(LENGTH, attention={"train": {"method": "s2", "groups": 3, "sinks": 2}}))
    ids, window = tokens(2, LENGTH), WINDOWED.get(family)
    one_kind = len(set(getattr(model.config, "layer_types", None) or ())) < 2
    visible = s2_visible(4, LENGTH, 16, 2, window if one_kind else None)
    mask = dense_mask(model, visible, window)
    exact_mask = {k: m.double() for k, m in mask.items()} if isinstance(mask, dict) else mask.double()
    with torch.no_grad():
        full = twin(ids, use_cache=False).logits
        sparse = twin(ids, attention_mask=mask, position_ids=torch.arange(LENGTH)[None], use_cache=False).logits
        exact = double(twin)(
            ids, attention_mask=exact_mask, position_ids=torch.arange(LENGTH)[None], use_cache=False
        ).logits
        assert (sparse - full).abs().max() > 0.1 * full.abs().max()
        assert_as_good(model.train()(ids).logits, sparse, exact)
        assert_as_good(model.eval()(ids).logits, full, double(twin)(ids).logits)


def test_group_size_is_fixed_by_the_recipe() -> None:
    """The group comes from data.length, so a shorter batch does not change a token's group."""
    model = build("llama").train()
    longspan.patch(model, recipe(64, attention={"train": {"method": "s2", "groups": 4, "sinks": 0}}))
    ids = tokens(1, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits[:, :37], model(ids[:, :37]).logits, rtol=1e-4, atol=1e-5)


def test_prefill_and_decode_patterns() -> None:
    """A window in prefill or decode changes exactly that phase."""
    window = {"method": "window", "size": 5, "sinks": 1}
    ids = tokens(1, 30)
    results = {}
    for name, attention in {"full": {}, "prefill": {"prefill": window}, "decode": {"decode": window}}.items():
        model = build("llama")
        longspan.patch(model, recipe(attention=attention))
        with torch.no_grad():
            prompt = model(ids[:, :-1], use_cache=True)
            step = model(ids[:, -1:], past_key_values=prompt.past_key_values).logits
        results[name] = (prompt.logits, step)
    assert torch.equal(results["full"][0], results["decode"][0])
    assert not torch.allclose(results["full"][0], results["prefill"][0], atol=1e-3)
    assert not torch.allclose(results["full"][1], results["decode"][1], atol=1e-3)


def test_two_models_keep_their_own_patterns() -> None:
    """One config object and one backend name, two recipes."""
    first = build("llama")
    from transformers import LlamaForCausalLM

    second = LlamaForCausalLM(first.config)
    second.load_state_dict(first.state_dict())
    third = LlamaForCausalLM(first.config).eval()
    third.load_state_dict(first.state_dict())
    ids = tokens(1, LENGTH)
    expected = third(ids).logits
    longspan.patch(first, recipe(attention={"train": {"method": "s2", "group_size": 8, "sinks": 0}}))
    longspan.patch(second, recipe(attention={"train": {"method": "window", "size": 40, "sinks": 0}}))
    with torch.no_grad():
        one, two = first.train()(ids).logits, second.train()(ids).logits
    assert not torch.allclose(one, two, atol=1e-3)
    assert torch.equal(third(ids).logits, expected), "an unpatched model that shares the config is untouched"
    assert third.config._attn_implementation == "sdpa"


def test_settings_changed_after_the_patch_survive_undo() -> None:
    model = build("llama")
    config = model.config
    report = longspan.patch(model, recipe())
    model.config.use_cache = False
    report.undo()
    assert model.config is config
    assert config.use_cache is False
    assert config._attn_implementation == "sdpa"


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    """In bfloat16 the error stays within twice that of the unpatched model, as weights and under autocast."""
    model = build("llama")
    twin, exact = copy.deepcopy(model), double(model)
    longspan.patch(model, recipe())
    ids = tokens(2, 60)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        assert_as_good(model(ids).logits, twin(ids).logits, exact(ids).logits, eps=2e-3)
    longspan.patch(half := copy.deepcopy(twin).to(dtype), recipe())
    twin_half = copy.deepcopy(twin).to(dtype)
    with torch.no_grad():
        assert_as_good(half(ids).logits, twin_half(ids).logits, exact(ids).logits, eps=2e-3)
