"""Tiny random models of every family, and the error bound that the contract tests share."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

VOCABULARY = 96
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
_GLU = {**_COMMON, "intermediate_size": 96, "num_key_value_heads": 2}
_GPT2 = {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}

# Family -> (config class, causal model class, config options). Dropout is 0: the laws compare two training
# runs.
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", _GLU),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**_GLU, "sliding_window": None}),
    "mistral_window": ("MistralConfig", "MistralForCausalLM", {**_GLU, "sliding_window": 9}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", _GLU),
    "qwen2_window": (
        "Qwen2Config",
        "Qwen2ForCausalLM",
        {**_GLU, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {**_GLU, "head_dim": 16}),
    "gemma2": (
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {**_GLU, "head_dim": 16, "sliding_window": 9, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 24},
    ),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", _GLU),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", {**_COMMON, "intermediate_size": 96}),
    "opt": (
        "OPTConfig",
        "OPTForCausalLM",
        {**_COMMON, "ffn_dim": 96, "word_embed_proj_dim": 64, "dropout": 0.0, "attention_dropout": 0.0},
    ),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {**_COMMON, **_GPT2}),
}
WINDOWED = {"mistral_window": 9, "qwen2_window": 9, "gemma2": 9}


def build(family: str, **changes: Any) -> Any:
    """A tiny model with weights large enough that attention is far from uniform; evaluation mode."""
    import transformers

    config_class, model_class, options = FAMILIES[family]
    torch.manual_seed(len(family))
    config = getattr(transformers, config_class)(**{**options, **changes})
    model = getattr(transformers, model_class)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
    return model.eval()


def recipe(length: int = 96, **changes: Any) -> dict[str, Any]:
    """A recipe with full attention everywhere unless told otherwise."""
    return {"data": {"length": length}, **changes}


def tokens(batch: int, length: int, seed: int = 0) -> Tensor:
    """Random token ids [B, T] without the padding id."""
    return torch.randint(1, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def double(model: Any) -> Any:
    """An unpatched float64 copy: the oracle."""
    return copy.deepcopy(model).double()


def assert_as_good(given: Tensor, baseline: Tensor, oracle: Tensor, eps: float = 2e-6) -> None:
    """The error against float64, relative to its largest entry, is at most twice the baseline's plus eps."""
    scale = oracle.abs().max().clamp(min=1e-30)
    error = (given.double() - oracle).abs().max() / scale
    allowed = 2 * (baseline.double() - oracle).abs().max() / scale + eps
    assert error <= allowed, f"error {error:.2e}, allowed {allowed:.2e}"


def gradients(model: Any) -> dict[str, Tensor]:
    """Gradients by name; takes them off the model."""
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_all_as_good(
    given: dict[str, Tensor], baseline: dict[str, Tensor], oracle: dict[str, Tensor], eps: float = 1e-5
) -> None:
    """As above for a whole step; eps is relative to its largest entry: gradients that nearly cancel are only noise."""
    assert given.keys() == baseline.keys()
    largest = max(oracle[name].abs().max() for name in given)
    for name, value in given.items():
        error, allowed = ((x.double() - oracle[name]).abs().max() for x in (value, baseline[name]))
        assert error <= 2 * allowed + eps * largest, f"{name}: error {error:.2e}, baseline {allowed:.2e}"
