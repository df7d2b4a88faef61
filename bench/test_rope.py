"""Rotary embedding on the CPU: ops rope and rope_ through torch and through longspan.kernels."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from bench.conftest import Session
from bench.layer_parts import HUGGING_FACE, KERNELS, OP, error_law, run_part
from longspan import kernels, ops
from longspan.ops.reference.rope import rope as reference

T, D = 4096, 64


class Inputs:
    """Projections of q and k; every route turns both and the gradients back."""

    def __init__(self, tokens: int, heads: int, key_heads: int, threads: int) -> None:
        self.heads, self.threads = (heads, key_heads), threads
        self.rows = [torch.randn(1, tokens, h * D) for h in self.heads]
        self.upstream = [torch.randn(1, tokens, h, D).transpose(1, 2) for h in self.heads]
        self.positions = torch.arange(tokens)[None]
        self.tables = ops.rope_table(10000.0 ** -(torch.arange(D // 2) / (D // 2)), tokens)
        self.wide = tuple(torch.cat([table, table], -1)[None] for table in self.tables)  # as transformers has them

    def _leaves(self) -> list[Tensor]:
        return [rows.detach().requires_grad_() for rows in self.rows]

    def _heads_first(self, rows: Tensor, heads: int) -> Tensor:
        return rows.view(1, -1, heads, D).transpose(1, 2)

    def op(self) -> tuple[Tensor, ...]:
        """The torch ops, in place on fresh projections; their making is not counted for others either."""
        leaves = self._leaves()
        fresh = [leaf.clone() for leaf in leaves]
        turned = [
            self._heads_first(ops.rope_(rows, *self.tables, self.positions, heads=h), h)
            for rows, h in zip(fresh, self.heads, strict=True)
        ]
        return *(y.detach() for y in turned), *torch.autograd.grad(turned, leaves, self.upstream)

    def pybind(self) -> tuple[Tensor, ...]:
        """longspan.kernels: rope_ and rope, which know no torch."""
        cos, sin = (table.numpy() for table in self.tables)
        options = {"positions": self.positions.numpy(), "threads": self.threads}
        found, gradients = [], []
        for rows, upstream, heads in zip(self.rows, self.upstream, self.heads, strict=True):
            x = self._heads_first(rows.clone(), heads).numpy()
            found.append(torch.from_numpy(kernels.rope_(x, cos, sin, **options)))
            dx = torch.from_numpy(kernels.rope(upstream.numpy(), cos, sin, inverse=True, **options))
            gradients.append(dx.transpose(1, 2).flatten(2))
        return *found, *gradients

    def hugging_face(self) -> tuple[Tensor, ...]:
        """transformers' apply_rotary_pos_emb."""
        leaves = self._leaves()
        q, k = (self._heads_first(leaf.clone(), h) for leaf, h in zip(leaves, self.heads, strict=True))
        turned = apply_rotary_pos_emb(q, k, *self.wide)
        return *(y.detach() for y in turned), *torch.autograd.grad(turned, leaves, self.upstream)

    def exact(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The definition in another dtype."""
        leaves = [rows.detach().to(dtype).requires_grad_() for rows in self.rows]
        turned = [
            reference(self._heads_first(leaf, h), *self.tables, self.positions)
            for leaf, h in zip(leaves, self.heads, strict=True)
        ]
        gradients = torch.autograd.grad(turned, leaves, [x.to(dtype) for x in self.upstream])
        return *(y.detach() for y in turned), *gradients


@pytest.mark.parametrize(("heads", "key_heads"), [(9, 3), (32, 8)])
def test_rope(session: Session, benchmark: BenchmarkFixture, heads: int, key_heads: int) -> None:
    """rope_ forward and rope backward on q and k, against transformers; each route copies its projections first."""
    small, inputs = (Inputs(tokens, heads, key_heads, session.threads) for tokens in (64, T))
    checked = error_law((small.op, small.pybind), small.exact(torch.float32), small.exact(torch.float64))
    rows = sum(x.nbytes for x in inputs.rows)
    run_part(
        session,
        benchmark,
        f"rope_, rope|cpu|float32|T={T},H={heads},K={key_heads},D={D}",
        checked,
        {OP: inputs.op, KERNELS: inputs.pybind, HUGGING_FACE: inputs.hugging_face},
        6.0 * rows,  # the copy of the projections, forward, backward
        2 * rows,
    )
