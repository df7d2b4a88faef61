"""Differentiable operations: schema, fake kernel, autograd and argument checks; one module a family."""

from longspan.ops.attention import attention
from longspan.ops.blocks import TokenBlocks
from longspan.ops.glu import ACTIVATIONS, activation, geglu, glu, swiglu
from longspan.ops.kept_rows import KeptRows, gather_rows, linear_scatter_add_, norm_gather_linear, scatter_add_rows
from longspan.ops.layout import TokenLayout
from longspan.ops.lora import Norm, Projection, lora_linear, norm_lora_linear
from longspan.ops.loss import segment_linear_cross_entropy
from longspan.ops.mlp_cols import mlp_cols
from longspan.ops.mlp_rows import mlp_rows, mlp_skip
from longspan.ops.norm import layer_norm, rms_norm
from longspan.ops.pattern import AttentionPattern
from longspan.ops.predictor import PredictorWeights, predictor_pairs, predictor_score
from longspan.ops.replay import Recording, place_rows
from longspan.ops.rope import rope, rope_, rope_packed_, rope_table
from longspan.ops.segment_mlp import segment_mlp
from longspan.ops.select import KeptBlocks, block_score, select_blocks

__all__ = [
    "ACTIVATIONS",
    "AttentionPattern",
    "KeptBlocks",
    "KeptRows",
    "Norm",
    "PredictorWeights",
    "Projection",
    "Recording",
    "TokenBlocks",
    "TokenLayout",
    "activation",
    "attention",
    "block_score",
    "gather_rows",
    "geglu",
    "glu",
    "layer_norm",
    "linear_scatter_add_",
    "lora_linear",
    "mlp_cols",
    "mlp_rows",
    "mlp_skip",
    "norm_gather_linear",
    "norm_lora_linear",
    "place_rows",
    "predictor_pairs",
    "predictor_score",
    "rms_norm",
    "rope",
    "rope_",
    "rope_packed_",
    "rope_table",
    "scatter_add_rows",
    "segment_linear_cross_entropy",
    "segment_mlp",
    "select_blocks",
    "swiglu",
]
