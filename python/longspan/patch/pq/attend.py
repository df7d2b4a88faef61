"""One call of an attention module that keeps some keys of each query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from longspan import ops
from longspan.attention.pq import BLOCK, PQAttention
from longspan.nn.codebook import Codebook
from longspan.patch.backend import Call
from longspan.patch.steps import Steps

BOOK = "longspan_codebook"  # of the submodule of an attention module


@dataclass
class PQAttend:
    """What `attention_forward` asks instead of a pattern: it chooses by queries and keys.

    budget: keys a query (blocks a block, in form block); recent, first: of those in any case.
    """

    config: PQAttention
    budget: int
    recent: int
    first: int
    steps: Steps

    @classmethod
    def of(cls, config: PQAttention, length: int, steps: Steps) -> PQAttend:
        """For rows of `length` tokens, the length that the recipe configures."""
        config.check(length)
        return cls(config, config.budget(length), *config.near(length), steps)

    def __repr__(self) -> str:
        unit = "blocks" if self.config.form == "block" else "keys"
        return f"pq({self.config.scorer}, form={self.config.form}, {self.budget} {unit}, sinks={self.config.sinks})"

    def attend(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        """q [B,H,T,D], k and v [B,K,S,D] -> [B,H,T,D]."""
        if torch.compiler.is_compiling():
            raise RuntimeError("attention pq needs eager mode; use attention: full or window under torch.compile")
        book: Codebook = getattr(module, BOOK)
        sides = [k] if self.config.scorer == "adc" else [q, k]
        if not book.fitted:
            book.fit(*sides)
        codes = [book.encode(side) for side in sides]
        due = module.training and torch.is_grad_enabled() and self.steps.step % self.config.refresh_every == 0
        if due and self.steps.first and book.seen != self.steps.forwards:
            book.seen = self.steps.forwards  # once, though a checkpoint may run this again
            book.renew(sides, codes, self.steps.forwards)
            codes = [book.encode(side) for side in sides]
        out = self._attend(q, k, v, book, codes, call)
        if module.training and torch.is_grad_enabled() and book.weight.requires_grad:
            out = self._with_loss(out, book, sides, codes, call.path, due)
        return out

    def _with_loss(
        self, out: Tensor, book: Codebook, sides: list[Tensor], codes: list[Tensor], path: str, due: bool
    ) -> Tensor:
        """The codewords' loss behind `out`; outside of its steps a zero, for every process to have a gradient."""
        losses = self.steps.losses
        if not due:
            return losses.join(out, book.weight.sum() * 0, 0.0)
        total = torch.stack(
            [book.loss(z, c, commit=self.config.commit) for z, c in zip(sides, codes, strict=True)]
        ).sum()
        losses.note("codebook_loss", path, total)
        return losses.join(out, total, self.config.loss_weight)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, book: Codebook, codes: list[Tensor], call: Call) -> Tensor:
        options: dict[str, Any] = {"scale": call.scale, "softcap": call.softcap}
        if self.config.form == "list":
            lists = self.lists(q, book, codes, call)
            out = ops.list_attention(q, k, v, lists, **options)
        else:
            pattern = (
                self.blocks(q, book, codes, call) if self.config.form == "block" else self.keys(q, book, codes, call)
            )
            out = ops.attention(q, k, v, pattern, layout=call.layout, model_window=call.window, **options)
        assert isinstance(out, Tensor)
        return out

    def selection(self, q: Tensor, book: Codebook, codes: list[Tensor], call: Call) -> ops.KeySelection:
        """The keys of each query."""
        where: dict[str, Any] = {"layout": call.layout, "model_window": call.window}
        near: dict[str, Any] = {"window": self.recent, "sinks": self.first}
        if self.config.scorer == "adc":
            # A copy: the codewords may be trained before this call's backward looks at them again.
            words = book.weight.detach().clone()
            return ops.topl_threshold(codes[0], self.budget, q=q, codebook=words, **near, **where)
        _, pieces, codewords, _ = book.weight.shape
        sizes: dict[str, Any] = {"subspaces": pieces, "codewords": codewords}
        return ops.topl_threshold(codes[1], self.budget, query_codes=codes[0], **sizes, **near, **where)

    def keys(self, q: Tensor, book: Codebook, codes: list[Tensor], call: Call) -> ops.AttentionPattern:
        """Form mask."""
        return ops.AttentionPattern.selected(self.selection(q, book, codes, call))

    def lists(self, q: Tensor, book: Codebook, codes: list[Tensor], call: Call) -> Tensor:
        """Form list: int32 [B,H,T,budget]."""
        queries = q if self.config.scorer == "adc" else None
        chosen = self.selection(q, book, codes, call)
        return ops.topl_indices(chosen, self.budget, q=queries, layout=call.layout, model_window=call.window)

    def blocks(self, q: Tensor, book: Codebook, codes: list[Tensor], call: Call) -> ops.AttentionPattern:
        """Form block."""
        _, pieces, codewords, _ = book.weight.shape
        if self.config.scorer == "adc":
            queries = ops.table_sums(ops.adc_table(q, book.weight), codewords)
        else:
            queries = ops.code_hist(codes[0], pieces, codewords)
        keys = ops.code_hist(codes[-1], pieces, codewords)
        sizes: dict[str, Any] = {"layout": call.layout, "model_window": call.window, "device": q.device}
        ranges = ops.BlockRanges.of(q.shape[2], codes[-1].shape[2], **sizes)
        table = ops.block_select(queries, keys, ranges, self.budget, first=self.first, recent=self.recent)
        return ops.AttentionPattern.listed(table, BLOCK)
