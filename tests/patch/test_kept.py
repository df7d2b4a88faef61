"""What patched layers keep for the backward, in bytes: the formula of docs/layers.md, and what each recompute drops."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

import longspan
from families import build, recipe, tokens
from longspan.memory import measure

T, C, F, LAYERS, HEADS, KV_HEADS, D = 512, 64, 96, 2, 4, 2, 16


def kept(family: str, recompute: str = "none") -> int:
    """Bytes that live between the forward and the backward of a step with frozen weights but one norm's."""
    model: Any = build(family, max_position_embeddings=T).train().requires_grad_(False)
    longspan.patch(model, recipe(length=T, memory={"recompute": recompute}))
    embeddings = model.get_input_embeddings()(tokens(1, T)).requires_grad_()
    inputs = {"inputs_embeds": embeddings, "labels": tokens(1, T)}
    model(**inputs).loss.backward()
    with measure() as live:
        loss = model(**inputs).loss
    assert loss.requires_grad
    return live.end_bytes


def test_a_layer_keeps_what_the_formula_says() -> None:
    """x, q, k, v, attention's output and lse, h, gate, up and the two norms' rstd; the loss keeps its gradient."""
    layer = C + (HEADS + 2 * KV_HEADS) * D + C + HEADS + C + 2 * F + 2
    # The first x is the caller's; behind the layers: x, its norm's rstd, the hidden rows' gradient. Once: the tables.
    floats = LAYERS * layer - C + C + 1 + C + D
    assert kept("llama") == pytest.approx(floats * T * 4, rel=0.02)


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "gpt_neox", "gemma2", "opt"])
def test_recompute_drops_what_it_says(family: str) -> None:
    gated = family not in ("gpt_neox", "opt")
    heads, kv_heads = (HEADS, KV_HEADS) if gated else (HEADS, HEADS)
    up = (2 * F if gated else F) + (1 if gated and family != "gemma2" else 2)
    qkv = (heads + 2 * kv_heads) * D
    if family == "qwen3":
        qkv += (heads + kv_heads) * D  # before their norms
    none, mlp, both = (kept(family, recompute) for recompute in ("none", "mlp", "mlp+qkv"))
    if family != "gemma2":  # a norm behind the branch needs the branch's result
        assert none - mlp == pytest.approx(LAYERS * up * T * 4, rel=0.01)
    generator = torch.get_rng_state().numel()  # kept a layer, so that dropout draws the same masks
    assert mlp - both == pytest.approx(LAYERS * (qkv * T * 4 - generator), rel=0.01)
    layer = kept(family, "layer")
    assert layer < both
    assert layer <= none - LAYERS * (up + qkv) * T * 4


def test_frozen_layers_keep_nothing_for_weights() -> None:
    """Nothing that no gradient needs is alive: without a gradient to the input there is nothing at all."""
    model: Any = build("llama").train().requires_grad_(False)
    longspan.patch(model, recipe())
    ids = tokens(1, 64)
    with measure() as live, torch.enable_grad():
        loss = model(input_ids=ids, labels=ids).loss
    assert not loss.requires_grad
    assert live.end_bytes < 64 * C * 4


@pytest.mark.parametrize("recompute", ["none", "mlp", "mlp+qkv", "layer"])
def test_nothing_is_left_to_the_garbage_collector(recompute: str) -> None:
    """After the backward all is free at once: a cycle of references would hold a layer's input for a while."""
    model: Any = build("llama", max_position_embeddings=T).train()
    longspan.patch(model, recipe(length=T, memory={"recompute": recompute}))
    ids = tokens(1, T)
    model(input_ids=ids, labels=ids).loss.backward()
    model.zero_grad()
    gc.collect()
    gc.disable()
    try:
        with measure() as live:
            model(input_ids=ids, labels=ids).loss.backward()
            model.zero_grad()
    finally:
        gc.enable()
    assert live.end_bytes < T * C * 4 // 2
