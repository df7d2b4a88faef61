"""What longspan cannot serve is refused by name, with what to do, and the model is left as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import longspan
from families import build, recipe, tokens

TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 96}
REMEDY = "set lean.loss: false in the recipe to keep transformers' loss"


def from_transformers(config: str, model: str, **options: Any) -> Any:
    """A tiny random model of another class."""
    import transformers

    return getattr(transformers, model)(getattr(transformers, config)(**options)).eval()


def patched(family: str = "llama") -> Any:
    model = build(family)
    longspan.patch(model, recipe())
    return model


def replaced_forward() -> Any:
    model = build("llama")
    model.forward = lambda **_: None
    return model


def own_loss() -> Any:
    model = build("llama")
    model.loss_function = lambda **_: torch.zeros(())
    return model


def odd_head() -> Any:
    """A model that adds 1 to one logit after the head."""

    class OddLlama(type(build("llama"))):  # type: ignore[misc]
        def forward(self, *args: Any, labels: Any = None, logits_to_keep: Any = 0, **kwargs: Any) -> Any:
            out = super().forward(*args, labels=labels, logits_to_keep=logits_to_keep, **kwargs)
            out.logits[..., 3] += 100.0
            return out

    model = build("llama")
    model.__class__ = OddLlama
    return model


def odd_attention() -> Any:
    """A model whose attention hands over something that the engine has never heard of."""
    model = build("llama")
    original = model.model.layers[0].self_attn.forward
    model.model.layers[0].self_attn.forward = lambda *a, **k: original(*a, **k, temperature=torch.ones(()))
    return model


def meta() -> Any:
    with torch.device("meta"):
        return from_transformers("LlamaConfig", "LlamaForCausalLM", **TINY)


INSTALL: dict[str, tuple[Callable[[], Any], str]] = {
    "twice": (
        patched,
        "this LlamaForCausalLM is patched already; call undo() on the report of that patch first",
    ),
    "not a model": (
        lambda: nn.Linear(2, 2),
        "longspan.patch takes a causal language model of transformers, not Linear",
    ),
    "no head": (
        lambda: build("llama").model,
        "LlamaModel has no language-model head; give a causal language model (AutoModelForCausalLM)",
    ),
    "meta": (meta, "this LlamaForCausalLM has parameters on the meta device; load its weights first"),
    "attention dropout": (
        lambda: build("llama", attention_dropout=0.1),
        "model.layers.0.self_attn: attention dropout 0.1 (attention_dropout) is not served; set it to 0 in the "
        "model's config before the model is built, or on the module",
    ),
    "attention dropout of GPT-2": (
        lambda: build("gpt2", attn_pdrop=0.2),
        "transformer.h.0.attn: attention dropout 0.2 (attn_dropout) is not served; set it to 0 in the model's "
        "config before the model is built, or on the module",
    ),
    "learned sinks": (
        lambda: from_transformers(
            "GptOssConfig",
            "GptOssForCausalLM",
            **TINY,
            num_key_value_heads=1,
            num_local_experts=2,
            num_experts_per_tok=1,
            pad_token_id=0,
        ),
        "model.layers.0.self_attn: learned sink logits (s_aux) is not served by longspan's attention engine",
    ),
    "ALiBi": (
        lambda: from_transformers(
            "FalconConfig",
            "FalconForCausalLM",
            hidden_size=32,
            num_attention_heads=2,
            num_hidden_layers=1,
            vocab_size=96,
            alibi=True,
        ),
        "FalconForCausalLM uses ALiBi, which longspan's attention engine does not serve",
    ),
    "no backend": (
        lambda: from_transformers(
            "BloomConfig", "BloomForCausalLM", hidden_size=32, n_layer=1, n_head=2, vocab_size=96
        ),
        "BloomForCausalLM does not take an attention backend from transformers' AttentionInterface, so longspan "
        "cannot serve its attention",
    ),
    "chunked": (
        lambda: from_transformers(
            "Llama4TextConfig",
            "Llama4ForCausalLM",
            **TINY,
            intermediate_size_mlp=48,
            num_key_value_heads=1,
            head_dim=16,
            num_local_experts=1,
            attention_chunk_size=8,
            pad_token_id=0,
        ),
        "Llama4ForCausalLM uses chunked attention (config.attention_chunk_size), which is not served",
    ),
    "encoder-decoder": (
        lambda: from_transformers(
            "T5Config",
            "T5ForConditionalGeneration",
            d_model=32,
            d_kv=16,
            d_ff=48,
            num_layers=1,
            num_heads=2,
            vocab_size=96,
        ),
        "T5ForConditionalGeneration is an encoder-decoder; longspan serves causal (decoder-only) language models",
    ),
    "bidirectional": (
        lambda: build("llama", is_causal=False),
        "LlamaForCausalLM has config.is_causal=False; bidirectional attention is not served",
    ),
    "wide heads": (
        lambda: build("llama", head_dim=320),
        "model.layers.0.self_attn: head dimension 320 is not served; at most 256",
    ),
    "unknown argument": (
        odd_attention,
        "LlamaForCausalLM gives its attention temperature (Tensor), which longspan's attention engine does not know",
    ),
    "forward replaced": (
        replaced_forward,
        "LlamaForCausalLM.forward was already replaced on this instance by another library; undo that, or " + REMEDY,
    ),
    "loss replaced": (own_loss, f"LlamaForCausalLM.loss_function was replaced by one of your own; {REMEDY}"),
    "router loss": (
        lambda: from_transformers(
            "MixtralConfig",
            "MixtralForCausalLM",
            **TINY,
            num_key_value_heads=1,
            num_local_experts=2,
            output_router_logits=True,
        ),
        "MixtralForCausalLM adds a router's auxiliary loss (config.output_router_logits=True); " + REMEDY,
    ),
}


def _touched(model: nn.Module) -> list[str]:
    found = [f"{name}.{key}" for name, module in model.named_modules() for key in module.__dict__ if "longspan" in key]
    hooks = [name for name, module in model.named_modules() if module._forward_hooks]
    config = getattr(model, "config", None)
    return [*found, *hooks, *(["backend"] if getattr(config, "_attn_implementation", None) == "longspan" else [])]


@pytest.mark.parametrize("name", list(INSTALL))
def test_refused_at_install(name: str) -> None:
    make, message = INSTALL[name]
    model = make()
    before = _touched(model)
    with pytest.raises(ValueError) as caught:
        longspan.patch(model, recipe())
    assert str(caught.value) == message
    assert _touched(model) == before


def test_unknown_logits_are_refused() -> None:
    model = odd_head()
    message = rf"OddLlama does something to its logits that longspan does not know \(.*\); {REMEDY}"
    with pytest.raises(ValueError, match=message):
        longspan.patch(model, recipe())
    assert not _touched(model)
    report = longspan.patch(model, recipe(lean={"loss": False}))
    assert "lean.loss" in report.skipped


def test_a_model_that_scores_differently_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial forward notices an attention that is not ours to imitate."""
    from longspan import ops

    honest = ops.attention
    monkeypatch.setattr(ops, "attention", lambda *a, **k: honest(*a, **k) * 1.01)
    with pytest.raises(ValueError, match="computes something else than longspan's attention engine"):
        longspan.patch(model := build("llama"), recipe())
    assert not _touched(model)


LENGTH = 8
CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "4-D mask": (
        {"attention_mask": torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool)},
        "model.layers.0.self_attn: longspan does not serve a 4-D attention mask [1, 1, 8, 8]; give a 2-D padding "
        "mask [batch, tokens], or cu_seq_lens_q / position_ids for packed documents",
    ),
    "sinks": (
        {"s_aux": torch.zeros(4)},
        "model.layers.0.self_attn: learned sink logits (s_aux) is not served by longspan's attention engine",
    ),
    "position bias": (
        {"position_bias": torch.zeros(1)},
        "model.layers.0.self_attn: a position bias (position_bias) is not served by longspan's attention engine",
    ),
    "weights": (
        {"output_attentions": True},
        "model.layers.0.self_attn: output_attentions=True is not served: attention weights are never formed",
    ),
    "boundaries": (
        {"cu_seq_lens_q": torch.tensor([0, 5], dtype=torch.int32)},
        "cu_seq_lens_q must rise from 0 to the 8 tokens of the batch, not [0, 5]",
    ),
}


@pytest.mark.parametrize("name", list(CALLS))
def test_refused_at_call(name: str) -> None:
    arguments, message = CALLS[name]
    with pytest.raises(ValueError) as caught:
        patched()(tokens(1, LENGTH), **arguments)
    assert str(caught.value) == message


def test_dropout_that_appears_later_is_refused() -> None:
    model = patched().train()
    model.model.layers[1].self_attn.attention_dropout = 0.5
    with pytest.raises(ValueError) as caught:
        model(tokens(1, LENGTH))
    assert str(caught.value) == (
        "model.layers.1.self_attn: attention dropout 0.5 is not served in training; set it to 0 in the model's "
        "config before the model is built, or on the module"
    )
    model.eval()(tokens(1, LENGTH))


def test_the_backend_alone_is_refused() -> None:
    """Asking transformers for the backend by name does not patch a model."""
    patched()
    model = build("llama")
    model.set_attn_implementation("longspan")
    with pytest.raises(ValueError) as caught:
        model(tokens(1, LENGTH))
    assert str(caught.value) == (
        "LlamaAttention asks for attention 'longspan' but its model was not patched; call longspan.patch(model, recipe)"
    )


def test_loss_replaced_later_is_refused() -> None:
    model = own = patched().train()
    own.loss_function = lambda **_: torch.zeros(())
    with pytest.raises(ValueError, match=r"model.loss_function was replaced, .* set lean.loss: false"):
        model(tokens(1, LENGTH), labels=tokens(1, LENGTH))
