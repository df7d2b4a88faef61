"""Differentiable operations: schema, fake kernel, autograd and argument checks; one module a family."""

from longspan.ops.attention import attention
from longspan.ops.block_select import BlockRanges, block_select, code_hist, table_sums
from longspan.ops.blocks import TokenBlocks
from longspan.ops.glu import ACTIVATIONS, activation, geglu, glu, swiglu
from longspan.ops.grouped import BlockSets, grouped_expand, grouped_reduce, grouped_weight
from longspan.ops.kept_rows import KeptRows, gather_rows, linear_scatter_add_, norm_gather_linear, scatter_add_rows
from longspan.ops.layout import TokenLayout
from longspan.ops.list_attention import list_attention, list_transpose
from longspan.ops.lora import Projection, lora_linear, norm_lora_linear
from longspan.ops.loss import segment_linear_cross_entropy
from longspan.ops.magnitude import Thresholds, kth_magnitude, magnitude_histogram, squared_norms
from longspan.ops.mlp_cols import mlp_cols
from longspan.ops.mlp_rows import mlp_rows, mlp_skip
from longspan.ops.norm import Norm, apply_norm, layer_norm, rms_norm
from longspan.ops.pattern import AttentionPattern
from longspan.ops.perturb import es_update_, perturb_, perturb_noise
from longspan.ops.pq import MAX_CODEWORDS, MAX_SUBSPACES, pq_decode, pq_encode, pq_loss, pq_stats, unpack_codes
from longspan.ops.predictor import PredictorWeights, predictor_pairs, predictor_score
from longspan.ops.replay import Recording, place_rows
from longspan.ops.rope import rope, rope_, rope_packed_, rope_table
from longspan.ops.route import RoutePlan, balance_loss, route_logits, route_plan, route_topk
from longspan.ops.routed_ffn import routed_ffn
from longspan.ops.segment_mlp import segment_mlp
from longspan.ops.select import KeptBlocks, block_score, select_blocks
from longspan.ops.topl import KeySelection, adc_table, topl_indices, topl_threshold
from longspan.ops.update import UpdateMask, adamw_scalars, masked_adamw_, masked_sgd_, sgd_scalars

__all__ = [
    "ACTIVATIONS",
    "MAX_CODEWORDS",
    "MAX_SUBSPACES",
    "AttentionPattern",
    "BlockRanges",
    "BlockSets",
    "KeptBlocks",
    "KeptRows",
    "KeySelection",
    "Norm",
    "PredictorWeights",
    "Projection",
    "Recording",
    "RoutePlan",
    "Thresholds",
    "TokenBlocks",
    "TokenLayout",
    "UpdateMask",
    "activation",
    "adamw_scalars",
    "adc_table",
    "apply_norm",
    "attention",
    "balance_loss",
    "block_score",
    "block_select",
    "code_hist",
    "es_update_",
    "gather_rows",
    "geglu",
    "glu",
    "grouped_expand",
    "grouped_reduce",
    "grouped_weight",
    "kth_magnitude",
    "layer_norm",
    "linear_scatter_add_",
    "list_attention",
    "list_transpose",
    "lora_linear",
    "magnitude_histogram",
    "masked_adamw_",
    "masked_sgd_",
    "mlp_cols",
    "mlp_rows",
    "mlp_skip",
    "norm_gather_linear",
    "norm_lora_linear",
    "perturb_",
    "perturb_noise",
    "place_rows",
    "pq_decode",
    "pq_encode",
    "pq_loss",
    "pq_stats",
    "predictor_pairs",
    "predictor_score",
    "rms_norm",
    "rope",
    "rope_",
    "rope_packed_",
    "rope_table",
    "route_logits",
    "route_plan",
    "route_topk",
    "routed_ffn",
    "scatter_add_rows",
    "segment_linear_cross_entropy",
    "segment_mlp",
    "select_blocks",
    "sgd_scalars",
    "squared_norms",
    "swiglu",
    "table_sums",
    "topl_indices",
    "topl_threshold",
    "unpack_codes",
]
