"""Linear maps with adapters: csrc/kernels/lora/{fwd_cpu,bwd_cpu,low_rank_cpu}.cpp, adapters.h and lora_cuda.cu."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from longspan.ops._define import scratch
from longspan.ops.scratch import lora_cuda
from longspan.ops.scratch.gemm import gemm
from longspan.ops.scratch.norm import norm_gradient, norm_rows
from longspan.ops.scratch.workspace import Steps, Workspace, ceil_div, is_given, narrow, round_up, statistics

PANEL = 2048
TILE_ROWS = 64


def _stride(columns: int) -> int:
    return round_up(columns, 16)


def _chunks(rows: int, columns: int) -> int:
    some, needed = min(max(256 // _stride(columns), 2), 16), ceil_div(rows, 64)
    return max(needed, 1) if needed < some else some


def _panel_rows(rows: int, everything: bool) -> int:
    if everything or rows <= PANEL:
        return max(rows, 1)
    return round_up(ceil_div(rows, ceil_div(rows, PANEL)), 64)


@dataclass
class _Call:
    """What both directions share."""

    ws: Workspace
    x: Tensor
    norm: str
    weights: Sequence[Tensor]
    lora_a: Sequence[Tensor]
    dropout: float

    def __post_init__(self) -> None:
        self.rows, self.C = self.x.shape
        self.e, self.stat, self.narrow = self.x.element_size(), statistics(self.x), narrow(self.x)
        self.normed = self.norm != "none"
        self.rank = [a.shape[0] if is_given(a) else 0 for a in self.lora_a]
        self.columns = sum(self.rank)
        self.steps = Steps(self.ws)
        if self.dropout > 0:
            self.parts = [rank for rank in self.rank if rank]
        else:
            self.parts = [self.columns] if self.columns else []

    def elements(self, count: int, size: int) -> None:
        """lora_scratch."""
        self.ws.take(max(count, 1) * size)

    def padded(self, columns: int) -> int:
        return round_up(columns, self.ws.machine.lanes(self.stat))

    def low_rank(self, width: int, parts: Sequence[int], *, factor: bool, dropout: float) -> None:
        """low_rank_pass_cpu."""
        ws, padding = self.steps.next(), 4 * self.ws.machine.lanes(4)
        for rank in parts:
            if factor:
                ws.take((width * self.padded(rank) + padding) * self.stat)
        own = TILE_ROWS * width if self.narrow or dropout > 0 else 0
        thin = 3 * TILE_ROWS * self.padded(max(rank + 1 for rank in parts) + 1)
        ws.take((own + thin) * ws.threads * self.stat)

    def thin_sums(self, rows: int, width: int, columns: int) -> None:
        self.elements(_chunks(rows, columns) * width * _stride(columns), self.stat)

    def z(self) -> None:
        if self.normed:
            norm_rows(self.steps.next(), self.C, self.stat, self.narrow)


@scratch("lora_linear_fwd")
def forward(
    ws: Workspace,
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm: str,
    eps: float,
    weight_offset: float,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    lora_a: Sequence[Tensor],
    lora_b: Sequence[Tensor],
    scalings: Sequence[float],
    residuals: Sequence[Tensor],
    dropout: float,
    seeds: Tensor | None,
) -> None:
    """A panel of normed rows, the adapters in the type of the sums, and what the products pack."""
    if x.shape[0] == 0:
        return
    if ws.on_cuda:
        return lora_cuda.forward(ws, x, norm, weights, lora_a)
    call = _Call(ws, x, norm, weights, lora_a, dropout)
    panel = _panel_rows(call.rows, not call.normed)
    if call.normed:
        call.elements(panel * call.C, call.e)
    if call.columns:
        call.elements(call.columns * call.C, call.stat)
    tails = [rank + is_given(bias) for rank, bias in zip(call.rank, biases, strict=True)]
    for tail, weight in zip(tails, weights, strict=True):
        if tail:
            call.elements(weight.shape[0] * tail, call.stat)
    widest = max((tail for tail, bias in zip(tails, biases, strict=True) if is_given(bias)), default=0)
    if widest:
        call.elements(panel * widest, call.stat)
    for first in range(0, call.rows, panel):
        rows = min(panel, call.rows - first)
        call.z()
        if call.columns:
            call.low_rank(call.C, call.parts, factor=True, dropout=dropout)
        for tail, weight in zip(tails, weights, strict=True):
            product: dict[str, Any] = {
                "element": call.stat,
                "in_place": not call.narrow,
                "rounds": call.narrow,
                "rank": tail,
            }
            gemm(call.steps.next(), rows, weight.shape[0], call.C, **product)
        if first:
            break  # two panels take what any number takes: the last is at most as long
    return


@scratch("lora_linear_bwd")
def backward(
    ws: Workspace,
    dys: Sequence[Tensor | None],
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm: str,
    eps: float,
    weight_offset: float,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    lora_a: Sequence[Tensor],
    lora_b: Sequence[Tensor],
    scalings: Sequence[float],
    dropout: float,
    seeds: Tensor | None,
    s: Tensor,
    rstd: Tensor,
    mean: Tensor,
    need_dx: bool,
    need_dnorm_weight: bool,
    need_dnorm_bias: bool,
    need_dweights: Sequence[int],
    need_dbiases: Sequence[int],
    need_dlora_a: Sequence[int],
    need_dlora_b: Sequence[int],
) -> None:
    """Panels of rows and of their gradients, ds, sums of the adapters' gradients, and what the products pack."""
    if x.shape[0] == 0:
        return
    needed = (need_dweights, need_dbiases, need_dlora_a, need_dlora_b)
    if ws.on_cuda:
        norms = (need_dnorm_weight, need_dnorm_bias)
        return lora_cuda.backward(ws, dys, x, norm_weight, norm, weights, lora_a, need_dx, norms, needed)
    _Backward(_Call(ws, x, norm, weights, lora_a, dropout), dys, needed).run(
        need_dx, need_dnorm_weight, need_dnorm_bias, norm_weight is not None
    )


class _Backward:
    """Class Backward of bwd_cpu.cpp, step by step."""

    def __init__(self, call: _Call, dys: Sequence[Tensor | None], needed: Sequence[Sequence[int]]) -> None:
        self.call, self.dys = call, dys
        self.dw = [bool(n) for n in needed[0]]
        self.db = [bool(n) for n in needed[1]]
        self.da = [bool(n) and rank > 0 for n, rank in zip(needed[2], call.rank, strict=True)]
        self.dlora_b = [bool(n) and rank > 0 for n, rank in zip(needed[3], call.rank, strict=True)]

    def run(self, need_dx: bool, need_dnorm_weight: bool, need_dnorm_bias: bool, norm_weight: bool) -> None:
        call = self.call
        active = [dy is not None for dy in self.dys]
        any_da, any_dw = any(self.da), any(w and a for w, a in zip(self.dw, active, strict=True))
        input_wanted = need_dx or need_dnorm_weight or need_dnorm_bias
        z_wanted = any_da or any_dw
        wide = input_wanted and call.narrow and (sum(active) > 1 or call.dropout > 0)
        whole = not (call.normed and z_wanted) and not wide and not (call.normed and input_wanted)
        panel = _panel_rows(call.rows, whole)
        self._reserve(panel, z_wanted, input_wanted, wide, need_dx, any_da)
        for wanted in (need_dnorm_weight, need_dnorm_bias):
            if wanted:
                call.elements(call.C, call.stat)
        if call.normed and norm_weight:
            call.elements(call.C, call.stat)
        for first in range(0, call.rows, panel):
            rows = min(panel, call.rows - first)
            for i, weight in enumerate(call.weights):
                self._adapter(i, weight.shape[0])
            if z_wanted:
                self._weights(rows, any_da, panel)
            if input_wanted:
                self._input(rows, wide, need_dnorm_weight, need_dnorm_bias)
            if first:
                break

    def _reserve(self, panel: int, z_wanted: bool, input_wanted: bool, wide: bool, need_dx: bool, any_da: bool) -> None:
        call = self.call
        if call.normed and z_wanted:
            call.elements(panel * call.C, call.e)
            call.elements(panel, call.stat)
            call.elements(panel, call.stat)
        if input_wanted and (call.normed or not need_dx):
            call.elements(panel * call.C, call.e)
        if wide:
            call.elements(panel * call.C, call.stat)
        if call.columns:
            call.elements(panel * call.columns, call.stat)
            call.elements(call.columns * call.C, call.stat)
            if any_da:
                call.thin_sums(panel, call.C, call.columns)
        for i, weight in enumerate(call.weights):
            if call.rank[i]:
                call.elements(weight.shape[0] * call.rank[i], call.stat)
            thin = (call.rank[i] if self.dlora_b[i] else 0) + self.db[i]
            call.thin_sums(panel, weight.shape[0] if self.dys[i] is not None and thin else 0, max(thin, 1))
            if self.dw[i] and call.narrow and panel < call.rows:
                call.elements(weight.numel(), 4)

    def _adapter(self, i: int, width: int) -> None:
        rank, bias = self.call.rank[i], self.db[i]
        if self.dys[i] is None or (rank == 0 and not bias):
            return
        if not self.dlora_b[i] and bias and rank:
            self.call.low_rank(width, [rank], factor=True, dropout=0)
            self.call.low_rank(width, [0], factor=False, dropout=0)
        else:
            self.call.low_rank(width, [rank], factor=rank > 0, dropout=0)

    def _weights(self, rows: int, any_da: bool, panel: int) -> None:
        call = self.call
        call.z()
        if any_da:
            call.low_rank(call.C, call.parts, factor=False, dropout=call.dropout)
        for i, weight in enumerate(call.weights):
            if self.dys[i] is not None and self.dw[i]:
                rounds = call.narrow and panel >= call.rows
                sizes = (weight.shape[0], call.C, rows)
                gemm(call.steps.next(), *sizes, element=call.stat, in_place=False, rounds=rounds)

    def _input(self, rows: int, wide: bool, dweight: bool, dbias: bool) -> None:
        call = self.call
        for i, weight in enumerate(call.weights):
            if self.dys[i] is None:
                continue
            product: dict[str, Any] = {"element": call.stat, "in_place": not call.narrow}
            rank = call.rank[i] if call.dropout == 0 else 0
            gemm(
                call.steps.next(), rows, call.C, weight.shape[0], rounds=call.narrow and not wide, rank=rank, **product
            )
        for i, rank in enumerate(call.rank):
            if call.dropout > 0 and rank and self.dys[i] is not None:
                ws, columns = call.steps.next(), call.padded(call.C)
                ws.take((rank * columns + 4 * ws.machine.lanes(4)) * call.stat)
                ws.take(16 * columns * ws.threads * call.stat)
        if call.normed:
            norm_gradient(call.steps.next(), rows, call.C, call.stat, dweight, dbias)
