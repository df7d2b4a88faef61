"""Differentiable operations: schema, fake kernel, autograd and argument checks; one module a family."""

from longspan.ops.attention import attention
from longspan.ops.glu import ACTIVATIONS, activation, geglu, glu, swiglu
from longspan.ops.layout import TokenLayout
from longspan.ops.lora import Norm, Projection, lora_linear, norm_lora_linear
from longspan.ops.loss import segment_linear_cross_entropy
from longspan.ops.norm import layer_norm, rms_norm
from longspan.ops.pattern import AttentionPattern
from longspan.ops.rope import rope, rope_, rope_packed_, rope_table
from longspan.ops.segment_mlp import segment_mlp

__all__ = [
    "ACTIVATIONS",
    "AttentionPattern",
    "Norm",
    "Projection",
    "TokenLayout",
    "activation",
    "attention",
    "geglu",
    "glu",
    "layer_norm",
    "lora_linear",
    "norm_lora_linear",
    "rms_norm",
    "rope",
    "rope_",
    "rope_packed_",
    "rope_table",
    "segment_linear_cross_entropy",
    "segment_mlp",
    "swiglu",
]
