"""Linear maps with adapters on CUDA: csrc/kernels/lora/{launch.h,lora_cuda.cu}. No GPU has confirmed these figures."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from longspan.ops.scratch.workspace import Workspace, ceil_div, is_given, round_up

PANEL, PANEL_COLUMNS, RANK_STEP = 8192, 256, 16


def _chunk_rows(rows: int) -> int:
    return min(max(round_up(ceil_div(rows, 16), 32), 32), PANEL)


def _panel_rows(rows: int) -> int:
    return min(PANEL // _chunk_rows(rows) * _chunk_rows(rows), rows)


def _ranks(lora_a: Sequence[Tensor]) -> tuple[list[int], list[int]]:
    ranks = [a.shape[0] if is_given(a) else 0 for a in lora_a]
    return ranks, [round_up(rank, RANK_STEP) for rank in ranks]


def forward(ws: Workspace, x: Tensor, norm: str, weights: Sequence[Tensor], lora_a: Sequence[Tensor]) -> None:
    """A panel of normed rows, the packed adapters and the panel's parts of s."""
    (T, C), e = x.shape, x.element_size()
    _, padded = _ranks(lora_a)
    panel, width = _panel_rows(T), sum(padded)
    if width:
        ws.take(width * round_up(C, 8) * e)
        for weight, ranks in zip(weights, padded, strict=True):
            ws.take(weight.shape[0] * ranks * e)
        ws.take(ceil_div(C, PANEL_COLUMNS) * panel * width * 4)
        ws.take(panel * width * e)
    if norm != "none":
        ws.take(panel * C * e)


def backward(
    ws: Workspace,
    dys: Sequence[Tensor | None],
    x: Tensor,
    norm_weight: Tensor | None,
    norm: str,
    weights: Sequence[Tensor],
    lora_a: Sequence[Tensor],
    need_dx: bool,
    need_norm: tuple[bool, bool],
    needed: Sequence[Sequence[int]],
) -> None:
    """ds with its tail, parts of dA and dB, panels of normed rows and of their gradient."""
    (T, C), e = x.shape, x.element_size()
    ranks, padded = _ranks(lora_a)
    panel, chunks = _panel_rows(T), ceil_div(T, _chunk_rows(T))
    need_dw, need_db, need_da, need_dlora_b = needed
    dz_wanted = need_dx or (norm != "none" and any(need_norm))
    z_wanted = any(need_da) or any(need_dw)
    first_ds = True
    for i, weight in enumerate(weights):
        N = weight.shape[0]
        if ranks[i] and dys[i] is not None:
            if dz_wanted or need_da[i]:
                ws.take(padded[i] * round_up(N, 8) * e)
                ws.take(ceil_div(N, PANEL_COLUMNS) * panel * padded[i] * 4)
                ws.take((T * sum(ranks) * 4 if first_ds else 0) + T * padded[i] * e)
                first_ds = False
            if need_dlora_b[i]:
                ws.take(chunks * padded[i] * N * 4)
        if need_db[i]:
            ws.take(chunks * N * 4)
        if need_dw[i] and norm != "none" and panel < T:
            ws.take(weight.numel() * 4)
    if dz_wanted and any(padded):
        ws.take(sum(padded) * round_up(C, 8) * e)
    if any(need_da):
        ws.take(chunks * sum(padded) * C * 4)
    if norm == "none":
        return
    if z_wanted:
        ws.take(2 * panel * 4 + panel * C * e)
    if dz_wanted:
        ws.take(panel * C * e * (1 if need_dx else 2) + C * 4)
        ws.take((int(need_norm[0]) + int(need_norm[1])) * (ceil_div(T, panel) + 1024) * C * 4)
