"""Self-attention with grouped keys, rotary positions and any pattern of the attention engine."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longspan import ops
from longspan.ops import AttentionPattern, TokenLayout


class Attention(nn.Module):
    """o_proj(attention(rope(q_proj(x)), rope(k_proj(x)), v_proj(x))), with the parameter names of Llama's attention.

    Args:
        embed_dim: C.
        num_heads: H.
        num_key_value_heads: K; None is H. H must be a multiple of it.
        head_dim: D; None is C / H.
        bias: Whether q, k and v have one; `out_bias` is that of the output.
        pattern: Which pairs attend; default causal full attention.

    Shapes: x [B,T,C] -> [B,T,C].
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_key_value_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = False,
        out_bias: bool = False,
        *,
        pattern: AttentionPattern | None = None,
        softcap: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        key_heads = num_heads if num_key_value_heads is None else num_key_value_heads
        if num_heads < 1 or key_heads < 1 or num_heads % key_heads:
            raise ValueError(
                f"Attention: num_heads is {num_heads} and num_key_value_heads {key_heads}; "
                "the first must be a positive multiple of the second"
            )
        if head_dim is None and embed_dim % num_heads:
            raise ValueError(
                f"Attention: embed_dim {embed_dim} is not a multiple of num_heads {num_heads}; give head_dim"
            )
        self.num_heads, self.num_key_value_heads = num_heads, key_heads
        self.head_dim = embed_dim // num_heads if head_dim is None else head_dim
        self.pattern = AttentionPattern.full() if pattern is None else pattern
        self.softcap = softcap
        q_width, k_width = num_heads * self.head_dim, key_heads * self.head_dim
        self.q_proj = nn.Linear(embed_dim, q_width, bias=bias, device=device, dtype=dtype)
        self.k_proj = nn.Linear(embed_dim, k_width, bias=bias, device=device, dtype=dtype)
        self.v_proj = nn.Linear(embed_dim, k_width, bias=bias, device=device, dtype=dtype)
        self.o_proj = nn.Linear(q_width, embed_dim, bias=out_bias, device=device, dtype=dtype)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None = None,
        positions: Tensor | None = None,
        layout: TokenLayout | None = None,
    ) -> Tensor:
        """x [B,T,C] -> [B,T,C].

        rope: cos and sin [P,N] of `RotaryEmbedding`; positions: [T] or [B,T], default 0 to T - 1; layout: documents and
        padding of the attention engine. Raises ValueError naming what does not fit.
        """
        if x.dim() != 3:
            raise ValueError(f"Attention: x has shape {tuple(x.shape)}; it must be [B,T,C]")
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if rope is not None:
            if positions is None:
                positions = torch.arange(x.shape[1], device=x.device)
            q = ops.rope_(q, *rope, positions, heads=self.num_heads)
            k = ops.rope_(k, *rope, positions, heads=self.num_key_value_heads)
        q, k, v = (rows.unflatten(2, (-1, self.head_dim)).transpose(1, 2) for rows in (q, k, v))
        out = ops.attention(q, k, v, self.pattern, layout=layout, softcap=self.softcap)
        assert isinstance(out, Tensor)
        y: Tensor = self.o_proj(out.transpose(1, 2).flatten(2))
        return y

    def extra_repr(self) -> str:
        """What the projections do not show."""
        return f"{self.num_heads} heads, {self.num_key_value_heads} key/value heads, {self.pattern}"
