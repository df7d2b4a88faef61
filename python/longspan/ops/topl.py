"""Which L keys each query keeps: integer scores of codes, thresholds instead of lists, lists where they are wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longspan.ops._define import define, op, require
from longspan.ops._dtypes import check_dtype
from longspan.ops.layout import TokenLayout
from longspan.ops.pattern import MOST, check_model_window
from longspan.ops.pq import MAX_CODEWORDS, MAX_SUBSPACES, check_codebook, code_bits, code_words

KEEPS_ALL = -1  # a threshold below every score


@dataclass(frozen=True)
class KeySelection:
    """The keys that each query keeps, O(T) numbers for any L.

    A key that causality, documents and the model's window allow is kept if it is near (among the last ``window`` keys,
    the query itself included, one of the first ``sinks`` of its document, or global), or if its score is above the
    query's ``threshold``, or equal to it and the key's number at least ``cut``.

    key_codes: int32 [B,K,S,W]. Scores: with ``codebook`` [G,M,E,d] asymmetric ones of the queries themselves, with
    ``query_codes`` int32 [B,H,T,W] the number of equal codes. threshold: int16 (int8 for equal codes), cut, kept (how
    many keys there are): int32, all [B,H,T].
    """

    key_codes: Tensor
    threshold: Tensor
    cut: Tensor
    kept: Tensor
    subspaces: int
    codewords: int
    query_codes: Tensor | None = None
    codebook: Tensor | None = None
    window: int = 0
    sinks: int = 0


@torch.no_grad()
def adc_table(q: Tensor, codebook: Tensor) -> Tensor:
    """Each query's product with every codeword, in 8 bits of the query's own scale: uint8 [B,H,T,M,16 or 256].

        v[m,e] = sum_j q[m d + j] codebook[g(h),m,e,j],  low[m] = min_e v[m,e]
        table[m,e] = floor((v[m,e] - low[m]) * (255 / max_m(max_e v[m,e] - low[m])) + 1/2)

    The score of a key is the sum over m of table[m, code[m]], an integer from 0 to 255 M: the order of <q, k'>, k' the
    key's codewords (asymmetric distance, Jégou et al. 2011). q, codebook: as `pq_encode`. No gradient. Every operation
    is rounded by itself in a fixed order, so that all devices give the same numbers for finite input. Raises ValueError
    for what does not fit, MissingBackendError when no kernel serves the device.
    """
    if q.dim() != 4:
        raise ValueError(f"adc_table: q has shape {tuple(q.shape)}; it must be [B,H,T,D]")
    check_dtype("adc_table", "q", q, half=True)
    check_codebook("adc_table", q, codebook)
    require("adc_table", q)
    table: Tensor = op("adc_table")(q.detach(), codebook.detach())
    return table


@torch.no_grad()
def topl_threshold(
    key_codes: Tensor,
    budget: int,
    *,
    q: Tensor | None = None,
    codebook: Tensor | None = None,
    query_codes: Tensor | None = None,
    subspaces: int = 0,
    codewords: int = 0,
    causal: bool = True,
    window: int = 0,
    sinks: int = 0,
    layout: TokenLayout | None = None,
    model_window: int | None = None,
) -> KeySelection:
    """The `budget` keys with the highest scores of each query, near ones among them, the newest of equal ones.

    key_codes: int32 [B,K,S,W], contiguous, from `pq_encode`. Give q [B,H,T,D] and codebook [G,M,E,d] (G divides K) for
    asymmetric scores, or query_codes int32 [B,H,T,W] with subspaces M and codewords E for the number of equal codes
    (SPT). window, sinks: keys that are kept in any case and count; more of them than the budget are kept all the same.
    layout, model_window: as `attention`, which takes the result as ``AttentionPattern.selected(...)`` with the same
    causal, layout and model_window. No gradient. Deterministic and the same on every device: integers alone decide.

    Memory: 10 bytes a query and head (9 and the codes for equal codes); scratch M bytes a key. Nothing is T x S.
    Raises ValueError naming what does not fit, and MissingBackendError when no kernel serves the device.
    Source: SPT (arXiv 2312.10365); threshold, ties, near keys and asymmetric scores are ours.
    """
    _check("topl_threshold", key_codes, q, codebook, query_codes, subspaces, codewords, layout)
    _check_causal("topl_threshold", causal)
    for name, value, least in (("budget", budget, 1), ("window", window, 0), ("sinks", sinks, 0)):
        if not least <= value <= MOST:
            raise ValueError(f"topl_threshold: {name} is {value}; it must be at least {least} and below 2^31")
    check_model_window("topl_threshold", model_window)
    if window and not causal:
        raise ValueError(f"topl_threshold: window is {window}; the last keys are those of a causal row, use window=0")
    require("topl_threshold", key_codes)
    threshold, cut, kept = op("topl_threshold")(
        None if q is None else q.detach(),
        query_codes,
        key_codes,
        None if codebook is None else codebook.detach(),
        None if layout is None else layout.queries,
        None if layout is None else layout.keys,
        budget,
        subspaces,
        codewords,
        causal,
        window,
        sinks,
        model_window or 0,
    )
    if codebook is not None:
        subspaces, codewords = codebook.shape[1:3]
    book = None if codebook is None else codebook.detach()
    return KeySelection(key_codes, threshold, cut, kept, subspaces, codewords, query_codes, book, window, sinks)


@torch.no_grad()
def topl_indices(
    selection: KeySelection,
    slots: int,
    *,
    q: Tensor | None = None,
    causal: bool = True,
    layout: TokenLayout | None = None,
    model_window: int | None = None,
) -> Tensor:
    """The kept keys as lists: int32 [B,H,T,slots], increasing, -1 behind the last; keys beyond the slots are left out.

    q: the queries of the selection, where it has a codebook. causal, layout, model_window: those that it was made with.
    Raises ValueError for what does not fit, MissingBackendError when no kernel serves the device.
    """
    s = selection
    _check("topl_indices", s.key_codes, q, s.codebook, s.query_codes, s.subspaces, s.codewords, layout)
    _check_causal("topl_indices", causal)
    if not 0 <= slots <= MOST:
        raise ValueError(f"topl_indices: slots is {slots}; it must not be negative, and be below 2^31")
    check_model_window("topl_indices", model_window)
    require("topl_indices", s.key_codes)
    indices: Tensor = op("topl_indices")(
        None if q is None else q.detach(),
        s.query_codes,
        s.key_codes,
        s.codebook,
        s.threshold,
        s.cut,
        None if layout is None else layout.queries,
        None if layout is None else layout.keys,
        slots,
        s.subspaces,
        s.codewords,
        causal,
        s.window,
        s.sinks,
        model_window or 0,
    )
    return indices


def _check_causal(name: str, causal: bool) -> None:
    if not isinstance(causal, bool):
        raise ValueError(f"{name}: causal is {causal!r}; allowed: True, False")


def _check(
    name: str,
    key_codes: Tensor,
    q: Tensor | None,
    codebook: Tensor | None,
    query_codes: Tensor | None,
    subspaces: int,
    codewords: int,
    layout: TokenLayout | None,
) -> None:
    if (q is None) != (codebook is None) or (q is None) == (query_codes is None):
        raise ValueError(
            f"{name}: give q and a codebook for asymmetric scores, or query_codes for equal codes, and not both"
        )
    if codebook is not None:
        assert q is not None
        if q.dim() != 4:
            raise ValueError(f"{name}: q has shape {tuple(q.shape)}; it must be [B,H,T,D]")
        check_dtype(name, "q", q, half=True)
        check_codebook(name, q, codebook)
        subspaces, codewords = codebook.shape[1:3]
    elif not (1 <= subspaces <= MAX_SUBSPACES and 1 <= codewords <= MAX_CODEWORDS):
        raise ValueError(
            f"{name}: subspaces is {subspaces} and codewords {codewords}; query_codes need them, 1 to {MAX_SUBSPACES} "
            f"and 1 to {MAX_CODEWORDS}"
        )
    queries = q if query_codes is None else query_codes
    assert queries is not None
    words = code_words(subspaces, codewords)
    for what, codes in (("key_codes", key_codes), ("query_codes", query_codes)):
        if codes is None:
            continue
        if codes.dtype != torch.int32 or codes.dim() != 4 or codes.shape[3] != words or not codes.is_contiguous():
            raise ValueError(
                f"{name}: {what} are {codes.dtype} {tuple(codes.shape)}; {subspaces} subspaces of {codewords} "
                f"codewords take contiguous int32 [B,heads,tokens,{words}]"
            )
    layouts = () if layout is None else (("layout.queries", layout.queries), ("layout.keys", layout.keys))
    for what, other in (("q", q), ("codebook", codebook), ("query_codes", query_codes), *layouts):
        if other is not None and other.device != key_codes.device:
            raise ValueError(f"{name}: {what} is on {other.device} and key_codes on {key_codes.device}; move it there")
    heads, key_heads = queries.shape[1], key_codes.shape[1]
    groups = 1 if codebook is None else codebook.shape[0]
    if key_heads < 1 or heads % key_heads or key_heads % groups or queries.shape[0] != key_codes.shape[0]:
        raise ValueError(
            f"{name}: queries {tuple(queries.shape)} and key_codes {tuple(key_codes.shape)} must agree in batch size, "
            f"key heads divide query heads, and the {groups} groups of the codebook divide the key heads"
        )
    if layout is None and queries.shape[2] != key_codes.shape[2]:
        raise ValueError(f"{name}: {queries.shape[2]} queries and {key_codes.shape[2]} keys need a layout")


def _threshold_fake(
    q: Tensor | None, query_codes: Tensor | None, key_codes: Tensor, codebook: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    queries = q if query_codes is None else query_codes
    assert queries is not None
    dtype = torch.int16 if query_codes is None else torch.int8
    shape = queries.shape[:3]
    cut, kept = (key_codes.new_empty(shape) for _ in range(2))
    return key_codes.new_empty(shape, dtype=dtype), cut, kept


def _indices_fake(
    q: Tensor | None,
    query_codes: Tensor | None,
    key_codes: Tensor,
    codebook: Tensor | None,
    threshold: Tensor,
    cut: Tensor,
    q_layout: Tensor | None,
    k_layout: Tensor | None,
    slots: int,
    *rest: Any,
) -> Tensor:
    return key_codes.new_empty((*threshold.shape, slots))


def _table_fake(q: Tensor, codebook: Tensor) -> Tensor:
    entries = 2 ** code_bits(codebook.shape[2])
    return q.new_empty((*q.shape[:3], codebook.shape[1], entries), dtype=torch.uint8)


_WHO = "Tensor? q, Tensor? query_codes, Tensor key_codes, Tensor? codebook"
_WHERE = "SymInt subspaces, SymInt codewords, bool causal, SymInt window, SymInt sinks, SymInt model_window"
define(
    "topl_threshold",
    f"({_WHO}, Tensor? q_layout, Tensor? k_layout, SymInt budget, {_WHERE}) "
    "-> (Tensor threshold, Tensor cut, Tensor kept)",
    _threshold_fake,
)
define(
    "topl_indices",
    f"({_WHO}, Tensor threshold, Tensor cut, Tensor? q_layout, Tensor? k_layout, SymInt slots, {_WHERE}) -> Tensor",
    _indices_fake,
)
define("adc_table", "(Tensor q, Tensor codebook) -> Tensor", _table_fake)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.mark_non_differentiable(*(output if isinstance(output, tuple) else (output,)))
    ctx.count = len(inputs)


def _backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, ...]:
    return (None,) * int(ctx.count)  # selections only choose


for _name in ("topl_threshold", "topl_indices", "adc_table"):
    torch.library.register_autograd(f"longspan::{_name}", _backward, setup_context=_setup)
