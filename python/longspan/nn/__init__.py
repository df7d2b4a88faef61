"""Modules on longspan's ops, with constructors like those of torch.nn: parts of any PyTorch transformer."""

from longspan.nn.attention import Attention
from longspan.nn.lora import LoRALinear
from longspan.nn.mlp import MLP, GatedMLP
from longspan.nn.norm import LayerNorm, RMSNorm
from longspan.nn.rotary import RotaryEmbedding

__all__ = ["MLP", "Attention", "GatedMLP", "LayerNorm", "LoRALinear", "RMSNorm", "RotaryEmbedding"]
