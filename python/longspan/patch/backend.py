"""The attention function that transformers calls by name, once registered for the whole process.

Which patterns a layer uses is a plain attribute of that attention module, so two patched models share the
name and keep separate options, and a copy of a model keeps its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from longspan import ops
from longspan.patch.mask import MaskSpec, spec_mask

# transformers reads meaning into names that contain flash, sdpa, flex_attention or a slash.
NAME = "longspan"
OPTIONS = "_longspan_attention"
MAX_HEAD_DIM = 256

_REFUSED = {
    "s_aux": "learned sink logits (s_aux)",
    "sinks": "learned sink logits (sinks)",
    "position_bias": "a position bias (position_bias)",
    "alibi": "ALiBi (alibi)",
    "indices": "key indices chosen by the model (indices)",
    "block_indices": "key blocks chosen by the model (block_indices)",
    "head_mask": "a head mask (head_mask)",
}
# What attention modules of served models may hand over; patch() refuses a model that passes anything else.
_EXPECTED = frozenset(
    {
        "position_ids",
        "use_cache",
        "sliding_window",
        "softcap",
        "is_causal",
        "output_attentions",
        "deterministic",
    }
)


@dataclass
class Observed:
    """What patch() learns from one trial forward: the modules that call the backend, in order, and what they
    pass.
    """

    modules: dict[nn.Module, tuple[int, int]] = field(default_factory=dict)
    """With the number of key heads and the head size of each."""
    extra: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """What a call of an attention module says beside its tensors: as the arguments of `ops.attention`."""

    path: str
    layout: ops.TokenLayout | None
    scale: float | None
    softcap: float | None
    window: int | None


class Chooser(Protocol):
    """Stands in for a pattern where the pairs follow from queries and keys."""

    def attend(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        """q [B,H,T,D], k and v [B,K,S,D] -> [B,H,T,D]."""


@dataclass(frozen=True)
class AttentionOptions:
    """Patterns of one attention module, and its path for messages. ``observed`` is set during patch()
    only.
    """

    path: str
    train: ops.AttentionPattern | Chooser
    prefill: ops.AttentionPattern | Chooser
    decode: ops.AttentionPattern | Chooser
    observed: Observed | None = None

    def choose(self, training: bool, queries: int, keys: int) -> ops.AttentionPattern | Chooser:
        """The pattern of this call: training, one token after a cache, or anything else."""
        if training:
            return self.train
        return self.decode if queries == 1 and keys > 1 else self.prefill


def register() -> None:
    """Make the backend and its mask function known to transformers under `NAME`. Later calls do
    nothing.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    # Both, and at class level: with a mask function missing there, causality and padding are silently lost.
    if AttentionInterface._global_mapping.get(NAME) is not attention_forward:
        AttentionInterface.register(NAME, attention_forward)
    if AttentionMaskInterface._global_mapping.get(NAME) is not spec_mask:
        AttentionMaskInterface.register(NAME, spec_mask)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: MaskSpec | Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one module: query [B, H, T, D], key and value [B, K, S, D] -> ([B, T, H, D], None).

    Raises ``ValueError`` naming the module and whatever the engine does not serve: there is no other path.
    """
    options: AttentionOptions | None = getattr(module, OPTIONS, None)
    if options is None:
        raise ValueError(
            f"{type(module).__name__} asks for attention {NAME!r} but its model was not patched; "
            "call longspan.patch(model, recipe)"
        )
    if options.observed is not None:
        _observe(options.observed, module, key, kwargs)
    _refuse(options.path, module, query, key, value, dropout, is_causal, kwargs)
    spec = spec_of(options.path, attention_mask)
    spec.check(query, key, options.path)
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    layout = spec.layout(query.device, kwargs.get("cu_seq_lens_q"), kwargs.get("position_ids"))
    call = Call(options.path, layout, scaling, softcap or None, spec.window)
    pattern = options.choose(module.training, query.shape[2], key.shape[2])
    query, key, value = _dense(query), _dense(key), _dense(value)
    if not isinstance(pattern, ops.AttentionPattern):
        return pattern.attend(module, query, key, value, call).transpose(1, 2), None
    out = ops.attention(
        query,
        key,
        value,
        pattern,
        layout=layout,
        scale=scaling,
        softcap=call.softcap,
        model_window=spec.window,
    )
    assert isinstance(out, Tensor)
    return out.transpose(1, 2), None


def _dense(heads: Tensor) -> Tensor:
    """The engine needs the last dimension contiguous; nearly every model gives it so."""
    return heads if heads.stride(-1) == 1 or heads.shape[-1] == 1 else heads.contiguous()


def _observe(observed: Observed, module: nn.Module, key: Tensor, kwargs: dict[str, Any]) -> None:
    observed.modules[module] = key.shape[1], key.shape[3]
    for name, value in kwargs.items():
        if name not in _EXPECTED and name not in _REFUSED and value is not None and value is not False:
            observed.extra.setdefault(name, type(value).__name__)


def spec_of(path: str, mask: MaskSpec | Tensor | None) -> MaskSpec:
    if isinstance(mask, MaskSpec):
        return mask
    if isinstance(mask, Tensor):
        raise ValueError(
            f"{path}: longspan does not serve a {mask.ndim}-D attention mask {list(mask.shape)}; give a 2-D "
            "padding mask [batch, tokens], or cu_seq_lens_q / position_ids for packed documents"
        )
    raise ValueError(f"{path}: the model gives its attention no mask, so causality is unknown; it is not served")


def _refuse(
    path: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float,
    is_causal: bool | None,
    kwargs: dict[str, Any],
) -> None:
    for name, what in _REFUSED.items():
        if kwargs.get(name) is not None:
            raise ValueError(f"{path}: {what} is not served by longspan's attention engine")
    if kwargs.get("output_attentions"):
        raise ValueError(f"{path}: output_attentions=True is not served: attention weights are never formed")
    if is_causal is False or getattr(module, "is_causal", True) is False:
        raise ValueError(f"{path}: bidirectional attention (is_causal=False) is not served; only causal models are")
    if module.training and dropout > 0:
        raise ValueError(
            f"{path}: attention dropout {dropout} is not served in training; set it to 0 in the model's "
            "config before the model is built, or on the module"
        )
    if query.shape[-1] > MAX_HEAD_DIM:
        raise ValueError(f"{path}: head dimension {query.shape[-1]} is not served; at most {MAX_HEAD_DIM}")
    if value.shape != key.shape:
        raise ValueError(
            f"{path}: keys {list(key.shape)} and values {list(value.shape)} differ in shape; it is not served"
        )
