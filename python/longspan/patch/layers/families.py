"""What the decoder layers of each family look like: data that one forward reads.

Every entry names attributes of transformers' modules. A class that is not listed here keeps its own layers:
classes that look alike by their attributes may still differ (Granite's residual multiplier, GLM4's extra norms).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerFamily:
    """Attribute names of one decoder-layer class; dotted where they lie deeper, from the layer on.

    qkv: the projections to queries, keys and values, or a single packed one; ``packed`` says how that one's columns are
    laid out: "blocks" (all q, all k, all v) or "heads" (q, k, v of head 0, then of head 1, ...).
    up: the projections into the feed-forward: gate and up, a packed one (gate, then up), or a plain one.
    post1, post2: norms of a branch before it is added (Gemma-2). drop1, drop2: its dropout, a module or a number.
    parallel: the attribute that says whether both branches read the layer's input (GPT-NeoX).
    refuse: attributes that must have these values.
    """

    norm1: str
    norm2: str
    attention: str
    qkv: tuple[str, ...]
    out: str
    mlp: str | None
    up: tuple[str, ...]
    down: str
    activation: str
    packed: str | None = None
    gated: bool = True
    rotary: bool = True
    qk_norm: tuple[str, str] | None = None
    post1: str | None = None
    post2: str | None = None
    drop1: str | None = None
    drop2: str | None = None
    parallel: str | None = None
    softcap: str | None = None
    cache: str = "past_key_values"
    refuse: tuple[tuple[str, object], ...] = ()


def _llama_like(**changes: object) -> LayerFamily:
    values: dict[str, object] = {
        "norm1": "input_layernorm",
        "norm2": "post_attention_layernorm",
        "attention": "self_attn",
        "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "out": "self_attn.o_proj",
        "mlp": "mlp",
        "up": ("mlp.gate_proj", "mlp.up_proj"),
        "down": "mlp.down_proj",
        "activation": "mlp.act_fn",
    }
    return LayerFamily(**(values | changes))  # type: ignore[arg-type]


_LLAMA = _llama_like()

FAMILIES: dict[str, LayerFamily] = {
    "LlamaDecoderLayer": _LLAMA,
    "MistralDecoderLayer": _LLAMA,
    "Qwen2DecoderLayer": _LLAMA,
    "Qwen3DecoderLayer": _llama_like(qk_norm=("self_attn.q_norm", "self_attn.k_norm")),
    "Gemma2DecoderLayer": _llama_like(
        norm2="pre_feedforward_layernorm",
        post1="post_attention_layernorm",
        post2="post_feedforward_layernorm",
        softcap="self_attn.attn_logit_softcapping",
    ),
    "Phi3DecoderLayer": _llama_like(
        qkv=("self_attn.qkv_proj",),
        packed="blocks",
        up=("mlp.gate_up_proj",),
        activation="mlp.activation_fn",
        drop1="resid_attn_dropout",
        drop2="resid_mlp_dropout",
    ),
    "GPTNeoXLayer": LayerFamily(
        norm1="input_layernorm",
        norm2="post_attention_layernorm",
        attention="attention",
        qkv=("attention.query_key_value",),
        packed="heads",
        out="attention.dense",
        mlp="mlp",
        up=("mlp.dense_h_to_4h",),
        down="mlp.dense_4h_to_h",
        activation="mlp.act",
        gated=False,
        drop1="post_attention_dropout",
        drop2="post_mlp_dropout",
        parallel="use_parallel_residual",
        cache="layer_past",
    ),
    "OPTDecoderLayer": LayerFamily(
        norm1="self_attn_layer_norm",
        norm2="final_layer_norm",
        attention="self_attn",
        qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        out="self_attn.out_proj",
        mlp=None,
        up=("fc1",),
        down="fc2",
        activation="activation_fn",
        gated=False,
        rotary=False,
        drop1="dropout",
        drop2="dropout",
        refuse=(("do_layer_norm_before", True),),
    ),
    "GPT2Block": LayerFamily(
        norm1="ln_1",
        norm2="ln_2",
        attention="attn",
        qkv=("attn.c_attn",),
        packed="blocks",
        out="attn.c_proj",
        mlp="mlp",
        up=("mlp.c_fc",),
        down="mlp.c_proj",
        activation="mlp.act",
        gated=False,
        rotary=False,
        drop1="attn.resid_dropout",
        drop2="mlp.dropout",
        refuse=(("crossattention", None),),
    ),
}
