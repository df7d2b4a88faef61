"""Drawings of ops that choose: rows, blocks of tokens, blocks of weights; and of what they are multiplied with."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from longspan import ops
from longspan.ops import TokenBlocks
from longspan.ops.reference import grouped as groupeds
from longspan.ops.reference import select as selects
from tests.fuzz.calls import Call, drawing
from tests.fuzz.draw import BF16, F32, F64, Draw
from tests.fuzz.rows import (
    BRANCH_NAMES,
    NAMED,
    different,
    fed_forward,
    learned,
    map_arguments,
    mapped,
    norm_arguments,
    norm_of,
    normed,
    of_map,
    projection_of,
)


def rows_of(draw: Draw) -> tuple[Tensor, Tensor]:
    M, C, dtype = draw.size(1), draw.size(1), draw.dtype()
    return draw.floats(M, C, dtype=dtype, strided=True), draw.chosen(draw.number(0, M), M)


@drawing("ops.gather_rows")
def gather_rows(draw: Draw) -> Call:
    x, rows = rows_of(draw)
    return Call(ops.gather_rows, {"x": x, "rows": rows}, lambda x, rows: x[different(rows, x)], ("x",))


def _copied(x: Tensor, rows: Tensor, y: Tensor) -> Tensor:
    """x with rows y; x itself where torch has no such copy, which is then for the op to refuse."""
    try:
        return torch.index_copy(x, 0, rows, y)
    except (RuntimeError, IndexError):
        return x


@drawing("ops.scatter_add_rows", "ops.KeptRows", "ops.place_rows")
def scatter_add_rows(draw: Draw) -> Call:
    x, rows = rows_of(draw)
    given = {"x": x, "y": draw.floats(len(rows), x.shape[1], dtype=x.dtype, strided=True), "rows": rows}
    kind = draw.one("add", "keep", "place")

    def run(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        if kind == "add":
            return ops.scatter_add_rows(x, y, rows)
        if kind == "place":
            return ops.place_rows(y, rows, _copied(x.detach(), rows, y.detach()))
        kept = ops.KeptRows(rows)
        inside = kept.enter(x)
        fits = (inside.shape, inside.dtype, inside.device) == (y.shape, y.dtype, y.device)
        return kept.leave(x, inside + y if fits else y)

    def exact(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        assert not len(different(rows, x)) or y.shape == (len(rows), x.shape[1])
        return x.detach().index_copy(0, rows, y) if kind == "place" else x.index_add(0, rows, y)

    names = ("scatter_add_rows", "KeptRows", "place_rows")
    return Call(run, given, exact, ("y",) if kind == "place" else ("x", "y"), names=names)


@drawing("ops.linear_scatter_add_")
def linear_scatter_add(draw: Draw) -> Call:
    x, rows = rows_of(draw)
    N = draw.size(1)
    given = {"x": x, "o": draw.floats(len(rows), N, dtype=x.dtype, strided=True), "rows": rows}
    given |= map_arguments(draw, x.shape[1], N, x.dtype)

    def run(x: Tensor, o: Tensor, rows: Tensor, **rest: Any) -> Tensor:
        return ops.linear_scatter_add_(x * 1 if x.requires_grad else x, o, projection_of(rest), rows)

    def exact(x: Tensor, o: Tensor, rows: Tensor, **rest: Any) -> Tensor:
        wide = F64 if x.dtype == F64 else F32
        added = mapped(o.to(wide), rest)
        return x.to(wide).index_add(0, different(rows, x), added).to(x.dtype)

    return Call(run, given, exact, ("x", "o", *of_map(given)), names=("lora_linear", "scatter_add", "values"))


@drawing("ops.Recording")
def recording(draw: Draw) -> Call:
    x, rows = rows_of(draw)
    given = {"x": x, "rows": rows, **norm_arguments(draw, x.shape[1], x.dtype)}

    def run(x: Tensor, rows: Tensor, **rest: Any) -> Tensor:
        with torch.no_grad(), ops.Recording(len(x)) as recorded:
            ops.apply_norm(norm_of(rest), x)
        with recorded.replay(rows):
            return ops.apply_norm(norm_of(rest), ops.gather_rows(x, rows))

    exact = lambda x, rows, **rest: normed(x[different(rows, x)], rest)  # noqa: E731
    return Call(run, given, exact, ("x",), names=(*NAMED, "rows", "x has"))


# ---- blocks of tokens ------------------------------------------------------------------------------------------------


def segments_of(draw: Draw) -> tuple[TokenBlocks, list[tuple[int, int]], int]:
    M, block = draw.size(1), draw.one(64, 1, 5, 100)
    segments = [(a, b - a) for a, b in itertools.pairwise(draw.cuts(M, draw.number(1, 3)))]
    return TokenBlocks.of(segments, M, block), segments, block


@drawing("ops.TokenBlocks")
def token_blocks(draw: Draw) -> Call:
    blocks, segments, block = segments_of(draw)
    kind = draw.one("of", "even", "packed", "padded", "rows_of", "gather")
    if kind == "of":
        given: dict[str, Any] = {"segments": segments, "rows": blocks.rows, "block": block}

        def exact(segments: Any, rows: int, block: int) -> Any:
            covered = [r for a, n in segments for r in range(a, a + n)]
            assert 1 <= block <= 256 and len(set(covered)) == len(covered)  # noqa: PT018
            assert all(0 <= r < rows for r in covered)
            assert all(n >= 0 and 0 <= a <= rows for a, n in segments)
            return torch.tensor(covered)

        def run(segments: Any, rows: int, block: int) -> Any:
            made = TokenBlocks.of(segments, rows, block)
            return made.rows_of(torch.arange(len(made.starts)))

        return Call(run, given, exact, names=("TokenBlocks",), sized=("segments", "rows"))
    if kind == "even":
        given = {"batch": draw.number(0, 3), "length": draw.size(), "block": block}
        return Call(TokenBlocks.even, given, sized=("batch", "length"), names=("TokenBlocks",))
    if kind == "packed":
        given = {"cu_seqlens": torch.tensor(draw.cuts(draw.size(), draw.number(0, 3))), "block": block}
        return Call(TokenBlocks.packed, given, names=("TokenBlocks",), free=("cu_seqlens",))
    if kind == "padded":
        mask = (torch.arange(7) < draw.integers(draw.number(0, 3), 1, below=8)).int()
        return Call(TokenBlocks.padded, {"mask": mask, "block": block}, names=("TokenBlocks",))
    if kind == "rows_of":
        count = len(blocks.starts)
        return Call(blocks.rows_of, {"ids": draw.chosen(draw.number(0, count), count)}, names=("TokenBlocks",))
    return Call(blocks.gather, {"x": draw.floats(blocks.rows, 3)}, names=("TokenBlocks",))


@drawing("ops.block_score")
def block_score(draw: Draw) -> Call:
    blocks, segments, block = segments_of(draw)
    K, D, dtype, M = draw.number(1, 2), draw.one(8, 1, 33), draw.dtype(), blocks.rows
    given = {
        "q": draw.floats(M, K * draw.number(1, 2), D, dtype=dtype, strided=True),
        "k": draw.floats(M, K, D, dtype=dtype, strided=True),
        "causal": draw.flag(),
        "symmetrise": draw.flag(),
        "scale": draw.one(None, 0.3),
    }
    runs = [[(a + i, min(block, n - i)) for i in range(0, n, block)] for a, n in segments]

    def exact(q: Tensor, k: Tensor, causal: bool, symmetrise: bool, scale: float | None) -> Tensor:
        wide = F64 if q.dtype == F64 else F32
        assert scale is None or scale >= 0
        found = selects.block_score(q.to(wide), k.to(wide), runs, causal=causal, scale=scale)
        return found + found.mT - torch.diag_embed(found.diagonal(dim1=1, dim2=2)) if symmetrise else found

    return Call(lambda q, k, **rest: ops.block_score(q, k, blocks, **rest), given, exact)


@drawing("ops.select_blocks", "ops.KeptBlocks")
def select_blocks(draw: Draw) -> Call:
    blocks, _, _ = segments_of(draw)
    given: dict[str, Any] = {"scores": draw.floats(len(blocks.starts), dtype=draw.dtype())}
    given |= {"keep_ratio": draw.one(0.5, 0.0, 1.0)} if draw.flag() else {"threshold": draw.one(0.5, 0.0)}
    given |= {"force_first": draw.one(0, 1), "force_last": draw.one(0, 2)}
    return Call(lambda scores, **rest: ops.select_blocks(scores, blocks, **rest), given)


@drawing("ops.predictor_score", "ops.predictor_pairs", "ops.PredictorWeights")
def predictor(draw: Draw) -> Call:
    blocks, _, _ = segments_of(draw)
    C, r1, r2, d, dtype = draw.size(1), draw.number(1, 4), draw.number(1, 4), draw.number(1, 3), draw.dtype()
    given = {"x": draw.floats(blocks.rows, C, dtype=dtype, strided=True)}
    for side in ("query", "key"):
        for name, sizes in (("w1", (r1, C)), ("w2", (r2, r1)), ("w3", (d, r2))):
            given[f"{side}_{name}"] = draw.floats(*sizes, dtype=dtype)

    def run(x: Tensor, **rest: Tensor) -> Any:
        sides = [tuple(rest[f"{side}_w{i}"] for i in (1, 2, 3)) for side in ("query", "key")]
        weights = ops.PredictorWeights(*sides)  # type: ignore[arg-type]
        pairs = ops.predictor_pairs(x, weights, blocks)
        return ops.predictor_score(x, weights, blocks), pairs

    return Call(run, given, names=("predictor", "weight"))


# ---- blocks of weights -----------------------------------------------------------------------------------------------


def sets_of(draw: Draw, n: int, blocks: int, active: int) -> Tensor:
    """Rows that group themselves: act [n, active], increasing."""
    return torch.rand(n, blocks, generator=draw.generator).argsort(1)[:, :active].sort(1).values


def blocks_of(draw: Draw) -> tuple[int, int]:
    blocks = draw.one(4, 1, 2, 5)
    return blocks, draw.number(1, blocks)


@drawing("ops.route_topk", "ops.route_plan", "ops.RoutePlan", "ops.balance_loss")
def route(draw: Draw) -> Call:
    n, (blocks, active) = draw.size(), blocks_of(draw)
    kind, dtype = draw.one("topk", "plan", "balance"), draw.dtype()
    logits = draw.floats(n, blocks, dtype=dtype)
    if kind == "topk":

        def chosen(logits: Tensor, active: int) -> Any:
            assert 1 <= active <= logits.shape[1]
            act = torch.sort(logits, dim=1, descending=True, stable=True).indices[:, :active].sort(1).values
            return act, 2 * torch.sigmoid(logits.gather(1, act))

        known = chosen if dtype == F64 else None
        return Call(ops.route_topk, {"logits": logits, "active": active}, known, ("logits",), names=("route", "logits"))
    act = sets_of(draw, n, blocks, active)
    if kind == "plan":

        def exact(act: Tensor, blocks: int) -> Any:
            assert act.dtype == torch.int64 and blocks <= 8  # noqa: PT018
            rows = [tuple(row) for row in act.tolist()]
            assert all(sorted(set(row)) == list(row) and 0 <= row[0] <= row[-1] < blocks for row in rows)
            members = list(itertools.combinations(range(blocks), act.shape[1]))
            numbers = [members.index(row) for row in rows]
            offsets = [sum(m < s for m in numbers) for s in range(len(members) + 1)]
            perm = sorted(range(len(rows)), key=lambda r: (numbers[r], r))
            inverse = torch.empty(len(rows), dtype=torch.int64)
            inverse[torch.tensor(perm, dtype=torch.int64)] = torch.arange(len(rows))
            counts = [sum(b in row for row in rows) for b in range(blocks)]
            return torch.tensor(offsets), blocks, act.shape[1], torch.tensor(perm), inverse, torch.tensor(counts)

        return Call(ops.route_plan, {"act": act, "blocks": blocks}, exact, names=("route_plan",))

    def balance(logits: Tensor, act: Tensor) -> Tensor:
        assert act.shape[0] == len(logits) and bool((act[:, 1:] > act[:, :-1]).all())  # noqa: PT018
        share = torch.zeros_like(logits).scatter_(1, act, 1.0).sum(0) / max(1, act.numel())
        mass = torch.sigmoid(logits)
        mean = (mass / mass.sum(1, keepdim=True)).sum(0) / max(1, len(logits))
        return logits.shape[1] * (share * mean).sum()

    return Call(ops.balance_loss, {"logits": logits, "act": act}, balance, ("logits",), names=("balance_loss",))


@drawing("ops.route_logits")
def route_logits(draw: Draw) -> Call:
    n, C, G, dtype = draw.size(), draw.size(1), draw.number(1, 8), draw.dtype()
    given = {"x": draw.floats(n, C, dtype=dtype, strided=True), **norm_arguments(draw, C, dtype)}
    given |= {"weight": draw.floats(G, C, dtype=dtype, scale=0.3), "bias": draw.floats(G, dtype=dtype)}

    def exact(x: Tensor, weight: Tensor, bias: Tensor, **rest: Any) -> Tensor:
        assert bias.shape == weight.shape[:1]
        return (normed(x, rest).to(weight.dtype) @ weight.mT + bias).to(weight.dtype)

    run = lambda x, weight, bias, **rest: ops.route_logits(x, weight, bias, norm_of(rest))  # noqa: E731
    names = learned(given, "x", "weight", "bias", "norm_weight", "norm_bias")
    return Call(run, given, exact, names, names=(*NAMED, "route"))


@drawing("ops.grouped_expand", "ops.grouped_reduce", "ops.grouped_weight", "ops.BlockSets")
def grouped(draw: Draw) -> Call:
    n, (blocks, active), dtype = draw.size(), blocks_of(draw), draw.dtype()
    kind, by_rows = draw.one("expand", "reduce", "weight"), draw.flag()
    Nb, C = draw.number(1, 9), draw.size(1)
    offsets = ops.route_plan(sets_of(draw, n, blocks, active), blocks).sets.offsets
    given: dict[str, Any] = {"offsets": offsets, "blocks": blocks, "active": active, "by_rows": by_rows}
    op = getattr(ops, f"grouped_{kind}")
    if kind == "weight":
        given |= {"a": draw.floats(n, active * Nb, dtype=dtype), "b": draw.floats(n, C, dtype=dtype, strided=True)}
    else:
        inner = C if kind == "expand" else active * Nb
        sizes = (blocks * Nb, C) if by_rows else (C, blocks * Nb)
        given |= {
            "x": draw.floats(n, inner, dtype=dtype, strided=True),
            "weight": draw.floats(*sizes, dtype=dtype, scale=0.3),
        }
        columns = blocks * Nb if kind == "expand" else C
        given["bias"] = draw.maybe(lambda: draw.floats(columns, dtype=dtype))
        wide, R = (F64 if dtype == F64 else F32), draw.number(1, 4)
        if draw.flag():
            stored = by_rows if kind == "expand" else not by_rows
            q = draw.floats(*((columns, R) if stored else (R, columns)), dtype=wide, scale=0.3)
            given |= {"tail_p": draw.floats(n, R, dtype=wide), "tail_q": q}

    def call(function: Any, convert: Any, given: dict[str, Any]) -> Any:
        sets = ops.BlockSets(given["offsets"], given["blocks"], given["active"])
        if kind == "weight":
            return function(convert(given["a"]), convert(given["b"]), sets, by_rows=given["by_rows"])
        bias = None if given["bias"] is None else convert(given["bias"])
        tail = None if given.get("tail_p") is None else (convert(given["tail_p"]), convert(given["tail_q"]))
        return function(convert(given["x"]), convert(given["weight"]), sets, bias, by_rows=given["by_rows"], tail=tail)

    def exact(**given: Any) -> Tensor:
        rows = given["a" if kind == "weight" else "x"]
        assert 1 <= given["active"] <= given["blocks"] <= 8
        borders = given["offsets"].tolist()
        assert borders == sorted(borders) and borders[0] == 0 and borders[-1] == len(rows)  # noqa: PT018
        wide = F64 if rows.dtype == F64 else F32
        return call(getattr(groupeds, f"grouped_{kind}"), lambda t: t.to(wide), given).to(rows.dtype)

    names = () if kind == "weight" else learned(given, "x", "weight", "bias", "tail_p", "tail_q")
    return Call(lambda **given: call(op, lambda t: t, given), given, exact, names, names=("grouped", "longspan"))


@drawing("ops.routed_ffn")
def routed_ffn(draw: Draw) -> Call:
    n, (blocks, _), C, dtype = draw.size(), blocks_of(draw), draw.size(1), draw.dtype()
    F = blocks * draw.number(1, 5)
    given = {"x": draw.floats(n, C, dtype=dtype, strided=True), **norm_arguments(draw, C, dtype)}
    marks = ("_up",) if draw.flag() else ("_gate", "_up")
    for mark in marks:
        given |= map_arguments(draw, F, C, dtype, mark, adapter=dtype != BF16)
    given |= map_arguments(draw, C, F, dtype, "_down", adapter=dtype != BF16)
    given |= {"activation": draw.one(*ops.ACTIVATIONS), "mode": draw.one("out", "none", "double")}
    # With all blocks and no gates it is the dense layer.
    plan = ops.route_plan(torch.arange(blocks).expand(n, blocks).contiguous(), blocks)

    def run(x: Tensor, activation: str, mode: str, **rest: Any) -> Tensor:
        up = [projection_of(rest, mark) for mark in marks]
        return ops.routed_ffn(
            x, up, projection_of(rest, "_down"), plan, None, norm_of(rest), activation=activation, mode=mode
        )

    def exact(mode: str, **rest: Any) -> Tensor:
        assert mode in ("out", "none", "double")
        return fed_forward(rest, marks, False)

    names = learned(given, "x", "norm_weight", "norm_bias") + of_map(given, *marks, "_down")
    return Call(run, given, exact, names, names=(*BRANCH_NAMES, "routed_ffn", "grouped", "longspan"))
