"""Perplexity equals its definition, counts every target once, stays lean and leaves the model as it was."""

from __future__ import annotations

import copy
import functools
import inspect
import math
import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    OPTConfig,
)

from longspan.eval import perplexity, scoring
from longspan.eval.perplexity import windows

SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def make(config: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)  # norms and biases count too
    return model.eval()


@pytest.fixture(scope="module")
def llama() -> Any:
    return make(LlamaConfig(**SMALL))


def texts(*sizes: int) -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(61) for _ in range(size)] for size in sizes]


def by_definition(model: Any, document: list[int], length: int, stride: int) -> tuple[float, int]:
    """Each target alone: find the first window that ends behind it, and score it with the whole model."""

    @functools.cache
    def scores(begin: int, end: int) -> torch.Tensor:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([document[begin:end]])).logits[0].double()
        return torch.log_softmax(logits, -1)

    total = 0.0
    for target in range(1, len(document)):
        end = min(length, len(document))
        while end <= target:
            end = min(end + stride, len(document))
        begin = max(0, end - length)
        total -= float(scores(begin, end)[target - begin - 1, document[target]])
    return total, len(document) - 1


@given(st.integers(2, 300), st.integers(2, 100), st.data())
def test_windows_count_every_target_once(tokens: int, length: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, length - 1))
    counted = []
    for begin, end, first in windows(tokens, length, stride):
        assert 0 <= begin < first <= end <= tokens
        assert end - begin == min(length, tokens)
        assert begin == 0 or first - begin >= length - stride
        counted += range(first, end)
    assert counted == list(range(1, tokens))


@pytest.mark.parametrize("stride", [1, 5, None])
def test_scores_are_the_definition(llama: Any, stride: int | None) -> None:
    documents = texts(19, 8, 24)
    got = perplexity(llama, documents, [8, 12], stride)
    for length in (8, 12):
        pairs = [by_definition(llama, document, length, stride or length // 2) for document in documents]
        want, count = (sum(column) for column in zip(*pairs, strict=True))
        assert got[length]["tokens"] == count == 18 + 7 + 23
        assert got[length]["loss"] == pytest.approx(want / count, rel=1e-5)
        assert got[length]["ppl"] == pytest.approx(math.exp(want / count), rel=1e-4)


def test_a_window_longer_than_the_text_is_the_models_own_loss(llama: Any) -> None:
    (document,) = texts(50)
    ids = torch.tensor([document])
    with torch.no_grad():
        want = float(llama(input_ids=ids, labels=ids).loss)
    assert perplexity(llama, [document], [50, 99])[99]["loss"] == pytest.approx(want, rel=1e-5)
    assert perplexity(llama, [document], [50])[50]["loss"] == pytest.approx(want, rel=1e-5)


FAMILIES = {
    "llama": (LlamaConfig(**SMALL), True),
    "gemma2": (Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=2.0, attn_implementation="eager"), True),
    "granite": (GraniteConfig(**SMALL, logits_scaling=3.0), True),
    "cohere": (CohereConfig(**SMALL, logit_scale=0.25), True),
    "gpt2": (GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=64), True),
    "opt": (OPTConfig(vocab_size=61, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4), True),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_scores_what_its_logits_say(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, splits = FAMILIES[family]
    model = make(config)
    (document,) = texts(40)
    want, count = by_definition(model, document, 16, 8)
    assert perplexity(model, [document], [16])[16]["loss"] == pytest.approx(want / count, rel=1e-5)
    with scoring.evaluating(model):
        assert scoring.NextTokenLoss(model).splits is splits
    # The slower way, for models whose logits no head reproduces, gives the same.
    monkeypatch.setattr(scoring.NextTokenLoss, "_head_reproduces_logits", lambda self: False)
    assert perplexity(model, [document], [16])[16]["loss"] == pytest.approx(want / count, rel=1e-5)


def test_a_head_that_does_more_is_noticed(llama: Any) -> None:
    model = copy.deepcopy(llama)
    plain = type(model).forward

    def doubled(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = plain(self, *args, **kwargs)
        out.logits = out.logits * 2
        return out

    model.__class__ = type("Doubled", (type(model),), {"forward": doubled})
    doubled.__signature__ = inspect.signature(plain)
    (document,) = texts(30)
    want, count = by_definition(model, document, 16, 8)
    assert perplexity(model, [document], [16])[16]["loss"] == pytest.approx(want / count, rel=1e-5)


def test_logits_never_exist_for_more_than_a_slice(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_SLICE_BYTES", 61 * 4 * 16)
    rows: list[int] = []
    handle = llama.lm_head.register_forward_hook(lambda module, given, out: rows.append(out.numel() // 61))
    (document,) = texts(300)
    lean = perplexity(llama, [document], [300])[300]["loss"]
    handle.remove()
    assert max(rows) == 16
    monkeypatch.undo()
    assert lean == pytest.approx(perplexity(llama, [document], [300])[300]["loss"], rel=1e-6)


def test_the_model_and_the_random_state_stay_as_they_were(llama: Any) -> None:
    llama.train()
    llama.model.layers[0].eval()
    modes = [module.training for module in llama.modules()]
    weights = {name: tensor.clone() for name, tensor in llama.state_dict().items()}
    state = torch.get_rng_state()
    perplexity(llama, texts(20), [8])
    assert [module.training for module in llama.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weights[name], tensor) for name, tensor in llama.state_dict().items())
    assert all(parameter.grad is None for parameter in llama.parameters())
    assert not any(module._forward_hooks for module in llama.modules())
    llama.eval()


def test_adapters_are_seen(llama: Any) -> None:
    from peft import LoraConfig, get_peft_model

    documents = texts(30)
    plain = perplexity(llama, documents, [16])[16]["loss"]
    model = get_peft_model(copy.deepcopy(llama), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    assert perplexity(model, documents, [16])[16]["loss"] == pytest.approx(plain, rel=1e-6)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    assert perplexity(model, documents, [16])[16]["loss"] != pytest.approx(plain, rel=1e-3)


def test_progress_is_told_to_the_end(llama: Any) -> None:
    told: list[tuple[int, int]] = []
    perplexity(llama, texts(20, 9), [8, 16], 4, progress=lambda done, total: told.append((done, total)))
    assert told == [(i, len(told)) for i in range(1, len(told) + 1)]
    assert len(told) == sum(len(list(windows(t, n, 4))) for t in (20, 9) for n in (8, 16))


@pytest.mark.parametrize(
    ("documents", "lengths", "stride", "message"),
    [
        ([], [8], None, "perplexity needs at least one document"),
        ([[1, 2], [1]], [8], None, "document 1 has 1 tokens; two are needed to predict one"),
        ([[1, 2]], [], None, "perplexity needs at least one length"),
        ([[1, 2]], [1], None, "a context length must be at least 2, not 1"),
        ([[1, 2]], [8, 16], 8, "stride must be from 1 to 7 at length 8, not 8"),
        ([[1, 2]], [8], 0, "stride must be from 1 to 7 at length 8, not 0"),
        ([[1, 61]], [8], None, "token id 61 is outside the model's vocabulary of 61"),
        ([[1, -1]], [8], None, "token id -1 is outside the model's vocabulary of 61"),
    ],
)
def test_bad_input(
    llama: Any, documents: list[list[int]], lengths: list[int], stride: int | None, message: str
) -> None:
    with pytest.raises(ValueError) as caught:
        perplexity(llama, documents, lengths, stride)
    assert str(caught.value) == message


def test_learned_positions_end(llama: Any) -> None:
    model = make(FAMILIES["gpt2"][0])
    with pytest.raises(ValueError, match="the model cannot read 65 tokens: its positions are learned and end at 64"):
        perplexity(model, texts(80), [65])
    assert perplexity(model, texts(80), [64])[64]["tokens"] == 79
