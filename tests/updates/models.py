"""Small models whose parameters are named as a decoder's, and gradients for them."""

from __future__ import annotations

import torch
from torch import nn


def decoder(layers: int = 4, *, hidden: int = 16, heads: int = 4, kv_heads: int = 4, seed: int = 0) -> nn.Module:
    """Modules of a Llama's names and shapes; it has no forward."""
    torch.manual_seed(seed)
    size, width = hidden // heads, 24
    linear = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden, kv_heads * size),
        "self_attn.v_proj": (hidden, kv_heads * size),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (hidden, width),
        "mlp.up_proj": (hidden, width),
        "mlp.down_proj": (width, hidden),
    }
    model = nn.Module()
    model.add_module("embed_tokens", nn.Embedding(32, hidden))
    model.add_module("layers", nn.ModuleList())
    for _ in range(layers):
        layer = nn.Module()
        for name in ("self_attn", "mlp"):
            layer.add_module(name, nn.Module())
        for name, (given, out) in linear.items():
            outer, inner = name.split(".")
            getattr(layer, outer).add_module(inner, nn.Linear(given, out, bias=False))
        for name in ("input_layernorm", "post_attention_layernorm"):
            layer.add_module(name, nn.LayerNorm(hidden, bias=False))
        model.layers.append(layer)  # type: ignore[operator, union-attr]
    model.add_module("norm", nn.LayerNorm(hidden, bias=False))
    return model


def fill_gradients(model: nn.Module, seed: int, scale: float = 1.0) -> None:
    """Normal gradients in place of what was there, for parameters that train."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if p.requires_grad:
            p.grad = (scale * torch.randn(p.shape, generator=generator)).to(p.dtype)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all parameters by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def changed(before: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Which elements have other bits than before."""
    return {name: p.detach() != before[name] for name, p in model.named_parameters()}
