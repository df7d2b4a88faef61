"""A call of a decoder layer in training in which some tokens take part: eliminated, or differentiated alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from longspan import ops
from longspan.patch.layers import parts
from longspan.patch.layers.layer import SEGMENT, Layer
from longspan.patch.tokens import late, select
from longspan.patch.tokens.cols import feed_forward_of_columns
from longspan.patch.tokens.rows import RowsLayer, WholeLayer
from longspan.patch.tokens.state import Choice, LayerTokens
from longspan.patch.tokens.stream import Stream


@dataclass
class KeptLayer(Layer):
    """One call of one layer with a token method."""

    tokens: LayerTokens = field(kw_only=True)
    choice: Choice = field(kw_only=True, default_factory=Choice)

    @property
    def keeps_input(self) -> bool:
        """Whether nothing but the layer's input is saved without any checkpoint around it."""
        return self.tokens.late and self.tokens.config.mlp == "rows"

    def run(self, hidden: Tensor, given: dict[str, Any]) -> Tensor:
        """hidden [B,T,C] through both branches."""
        self.batch, length, columns = hidden.shape
        given = {name: value for name, value in given.items() if name != "encoder_hidden_states"}
        self._refuse(given)
        config = self.tokens.config
        stream = Stream.of(self.tokens.path, given, self.batch, length, hidden.device, config.block)
        rows = hidden.reshape(self.batch * length, columns)
        if self.tokens.late:
            out = self._late(rows, given, stream)
        else:
            middle = self._attention_of_rows(rows, given, stream)
            out = self._feed_forward_of_rows(rows if self.parallel else middle, middle, stream)
        return out.reshape(self.batch, length, columns)

    def _refuse(self, given: dict[str, Any]) -> None:
        where, config = self.tokens.path, self.tokens.config
        if given.pop(self.state.family.cache, None) is not None:
            raise ValueError(
                f"{where}: tokens.lemo leaves tokens out of layers in training, a key/value cache cannot; pass "
                "use_cache=False"
            )
        for path in (self.state.family.attention, self.state.family.mlp):
            if path is not None and parts.hooked(parts.attribute(self.layer, path)):
                raise ValueError(f"{where}: {path} has hooks; tokens.lemo runs parts of it and would not call them")
        if config.forward == "eliminate" and config.mlp in ("dense", "skip"):
            return
        dropping = [name for name, module in self.layer.named_modules() if isinstance(module, nn.Dropout) and module.p]
        family = self.state.family
        dropping += [path for path in (family.drop1, family.drop2) if self.drops(path)]
        if dropping:
            raise ValueError(
                f"{where}: {dropping[0]} drops at random, and what tokens.lemo differentiates (forward: dense, mlp: "
                "rows or cols) would be another mask than the forward's; set that dropout to 0 (adapter.dropout for "
                "LoRA's)"
            )

    # ---- known before the layer runs -----------------------------------------------------------------------------

    def _attention_of_rows(self, rows: Tensor, given: dict[str, Any], stream: Stream) -> Tensor:
        if self.choice.attention is None:
            self.choice.scores = select.score_before(self, self.tokens, rows, stream)
            self.choice.attention = select.keep(self.tokens, self.choice.scores, stream)
        kept = self.choice.attention.rows
        join = ops.KeptRows(kept)
        if self.tokens.config.forward == "eliminate":
            part = RowsLayer.of(self, kept)
            return join.leave(rows, part.attention(join.enter(rows), stream.given(given, kept)))
        whole = WholeLayer.of(self)
        with torch.no_grad(), ops.Recording(len(rows)) as recording:
            middle = whole.attention(rows, dict(given))
        part = RowsLayer.of(self, kept, placed=whole.kv)
        del whole
        with recording.replay(kept):
            y = part.attention(join.enter(rows), stream.given(given, kept, all_keys=True))
        return join.leave_as(rows, y, middle)

    def _feed_forward_of_rows(self, rows: Tensor, residual: Tensor, stream: Stream) -> Tensor:
        mlp = self.tokens.config.mlp
        if mlp == "dense":
            return self.feed_forward(rows, residual)
        if mlp == "cols":
            return feed_forward_of_columns(self, rows, residual, self.tokens.config.mlp_share)
        if mlp == "skip":
            assert self.choice.attention is not None
            kept = self._rows_of_mlp(None, stream)
            join, y = self._differentiated(rows, residual, kept, None)
            return join.leave(residual, y)
        scored = self.choice.mlp is None and self.tokens.config.selector in ("predictor", "scores")
        whole = WholeLayer.of(self, measured=scored)
        segmented = "mlp" in self.recompute
        with torch.no_grad(), ops.Recording(len(rows)) as recording:
            if segmented:
                pairs = zip(rows.split(SEGMENT), residual.split(SEGMENT), strict=True)
                out = torch.cat([whole.feed_forward(*pair) for pair in pairs])
            else:
                out = whole.feed_forward(rows, residual)
        kept = self._rows_of_mlp(torch.cat(whole.norms) if whole.norms else None, stream)
        if segmented:
            join, y = self._differentiated(rows, residual, kept, out)
        else:
            with recording.replay(kept):
                join, y = self._differentiated(rows, residual, kept, None)
        return join.leave_as(residual, y, out)

    def _differentiated(
        self, rows: Tensor, residual: Tensor, kept: Tensor, out: Tensor | None
    ) -> tuple[ops.KeptRows, Tensor]:
        """The feed-forward of the kept rows with its graph; `out` if it is known for all."""
        join = ops.KeptRows(kept)
        branch = None if out is None else out.index_select(0, kept)
        added = join.enter(residual)
        entered = added if rows is residual else ops.gather_rows(rows, kept)
        return join, RowsLayer.of(self, kept, branch=branch).feed_forward(entered, added)

    def _rows_of_mlp(self, norms: Tensor | None, stream: Stream) -> Tensor:
        """Those of the attention; others where rows were measured or another ratio is asked for."""
        if self.choice.mlp is None:
            assert self.choice.attention is not None
            config = self.tokens.config
            if norms is not None:
                self.choice.mlp = select.keep(
                    self.tokens, select.block_maxima(norms, stream), stream, config.mlp_share
                ).rows
            elif config.mlp_ratio is not None and self.choice.scores is not None:
                self.choice.mlp = select.keep(self.tokens, self.choice.scores, stream, config.mlp_ratio).rows
            else:
                self.choice.mlp = self.choice.attention.rows
            self.choice.scores = None
        return self.choice.mlp

    # ---- known in the backward -----------------------------------------------------------------------------------

    def _late(self, rows: Tensor, given: dict[str, Any], stream: Stream) -> Tensor:
        if self.tokens.config.mlp == "rows":
            return late.differentiate(self, rows, given, stream, feed_forward=True)
        middle = late.differentiate(self, rows, given, stream, feed_forward=False)
        rows = rows if self.parallel else middle
        if self.tokens.config.mlp == "cols":
            return feed_forward_of_columns(self, rows, middle, self.tokens.config.mlp_share)
        return self.feed_forward(rows, middle)
