"""Drawings of attention, its patterns and layouts, lists of keys, codes and selections."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from longspan import ops
from longspan.ops import AttentionPattern, TokenLayout
from longspan.ops.reference import attention as attentions
from longspan.ops.reference import list_attention as lists
from longspan.ops.reference import pq as quantisers
from longspan.ops.reference import topl as selections
from tests.fuzz.calls import Call, drawing
from tests.fuzz.draw import F32, F64, Draw


def heads_of(draw: Draw) -> tuple[int, int, int]:
    """B, H and K."""
    K = draw.number(1, 2)
    return draw.number(0, 2), K * draw.number(1, 2), K


@drawing("ops.TokenLayout")
def layout(draw: Draw) -> Call:
    kind = draw.one("packed", "padded", "cached", "rows", "global")
    total = draw.size()
    if kind == "packed":
        cu_seqlens = torch.tensor(draw.cuts(total, draw.number(0, 3)), dtype=draw.one(torch.int32, torch.int64))
        run = lambda cu_seqlens: TokenLayout.packed(cu_seqlens).queries  # noqa: E731

        def exact(cu_seqlens: Tensor) -> Tensor:
            borders = cu_seqlens.tolist()
            assert borders[0] == 0
            pairs = [(i, p) for i in range(len(borders) - 1) for p in range(borders[i + 1] - borders[i])]
            assert len(pairs) == borders[-1] and "int" in str(cu_seqlens.dtype)  # noqa: PT018
            return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).mT[:, None]

        return Call(run, {"cu_seqlens": cu_seqlens}, exact, names=("TokenLayout",), sized=("cu_seqlens",))
    if kind == "padded":
        mask = draw.integers(draw.number(0, 2), total, below=2, dtype=torch.bool)
        return Call(lambda mask: TokenLayout.padded(mask).keys, {"mask": mask}, names=("TokenLayout",))
    if kind == "cached":
        given = {"past": draw.size(), "length": total}
        return Call(TokenLayout.cached, given, sized=("past", "length"), names=("TokenLayout",))
    whole = TokenLayout.cached(0, total)
    if kind == "rows":
        rows = draw.chosen(draw.number(0, total), total)
        return Call(lambda kept_rows: TokenLayout.rows(whole, kept_rows), {"kept_rows": rows}, names=("TokenLayout",))
    marks = draw.integers(1, total, below=2, dtype=torch.bool)
    return Call(lambda tokens: whole.with_global(tokens), {"tokens": marks}, names=("TokenLayout",))


def any_layout(draw: Draw, B: int, T: int, S: int) -> TokenLayout | None:
    if T != S:
        return TokenLayout.cached(S - T, T)
    kind = draw.one("none", "packed", "padded", "global")
    if kind == "packed":
        return TokenLayout.packed(torch.tensor(draw.cuts(T, draw.number(1, 4))))
    if kind == "padded":
        return TokenLayout.padded(draw.integers(B, T, below=3) > 0) if B else None
    if kind == "global":
        return TokenLayout.cached(0, T).with_global(draw.integers(1, T, below=5) == 0)
    return None


def pattern_arguments(draw: Draw) -> dict[str, Any]:
    kind = draw.one("full", "s2", "window")
    if kind == "full":
        return {"pattern": kind, "causal": draw.flag()}
    sinks = draw.one(0, 1, 3)
    return {
        "pattern": kind,
        "sinks": sinks,
        **({"group_size": 2 * draw.number(1, 40)} if kind == "s2" else {"size": draw.size(1)}),
    }


def pattern_of(pattern: str, **given: Any) -> AttentionPattern:
    return {"full": AttentionPattern.full, "s2": AttentionPattern.s2, "window": AttentionPattern.window}[pattern](
        **given
    )


@drawing("ops.AttentionPattern")
def pattern(draw: Draw) -> Call:
    kind = draw.one("named", "tiles", "groups")
    if kind == "tiles":
        table = draw.lists(draw.number(1, 2), draw.number(0, 3), slots=draw.number(0, 3), keys=3)
        given = {"table": table, "tile_size": draw.one(64, 256)}
        return Call(lambda table, tile_size: AttentionPattern.tiles(table, tile_size).tile_size, given, names=("tile",))
    if kind == "groups":
        given = {"groups": draw.number(1, 9), "length": draw.size(1)}
        run = lambda groups, length: AttentionPattern.s2(groups).resolve(length).group_size  # noqa: E731
        return Call(run, given, names=("AttentionPattern",))
    given = pattern_arguments(draw)
    return Call(lambda **rest: pattern_of(**rest).sinks, given, free=("pattern",), names=("AttentionPattern",))


@drawing("ops.attention")
def attention(draw: Draw) -> Call:
    (B, H, K), T, D, dtype = heads_of(draw), draw.size(), draw.one(8, 1, 5, 33, 64), draw.dtype()
    S = T + draw.one(0, 0, 3)
    placed = any_layout(draw, B, T, S)
    given = {
        "q": draw.floats(B, H, T, D, dtype=dtype, strided=True),
        "k": draw.floats(B, K, S, D, dtype=dtype, strided=True),
        "v": draw.floats(B, K, S, D, dtype=dtype, strided=True),
        "scale": draw.one(None, 0.3),
        "softcap": draw.one(None, 2.0),
        "model_window": draw.one(None, 5),
        **pattern_arguments(draw),
    }
    options = ("scale", "softcap", "model_window")

    def split(given: dict[str, Any]) -> tuple[AttentionPattern, dict[str, Any]]:
        named = {n: given.pop(n) for n in options}
        return pattern_of(**given), named

    def run(q: Tensor, k: Tensor, v: Tensor, **rest: Any) -> Any:
        pattern, named = split(rest)
        return ops.attention(q, k, v, pattern, layout=placed, return_lse=True, **named)

    def exact(q: Tensor, k: Tensor, v: Tensor, **rest: Any) -> Any:
        pattern, named = split(rest)
        wide = F64 if q.dtype == F64 else F32
        out, lse = attentions.attention(q.to(wide), k.to(wide), v.to(wide), pattern, layout=placed, **named)
        return out, lse

    return Call(run, given, exact, ("q", "k", "v"), names=("AttentionPattern", "attention"), free=("pattern",))


@drawing("ops.list_attention")
def list_attention(draw: Draw) -> Call:
    (B, H, K), T, S, D, dtype = heads_of(draw), draw.size(), draw.size(), draw.one(8, 1, 5, 33), draw.dtype()
    given = {
        "q": draw.floats(B, H, T, D, dtype=dtype, strided=True),
        "k": draw.floats(B, K, S, D, dtype=dtype, strided=True),
        "v": draw.floats(B, K, S, D, dtype=dtype, strided=True),
        "indices": draw.lists(B, H, T, slots=draw.one(2, 0, 5), keys=S),
        "scale": draw.one(None, 0.3),
        "softcap": draw.one(None, 2.0),
    }

    def exact(q: Tensor, k: Tensor, v: Tensor, indices: Tensor, **rest: Any) -> Any:
        wide = F64 if q.dtype == F64 else F32
        assert increasing(indices, k.shape[2])
        return lists.list_attention(q.to(wide), k.to(wide), v.to(wide), indices, **rest)

    run = lambda **rest: ops.list_attention(**rest, return_lse=True)  # noqa: E731
    return Call(run, given, exact, ("q", "k", "v"))


def increasing(indices: Tensor, keys: int) -> bool:
    rows = [[int(j) for j in row] for row in indices.reshape(-1, indices.shape[-1])] if indices.numel() else []
    kept = [[j for j in row if j != -1] for row in rows]
    return all(
        row[: len(k)] == k == sorted(set(k)) and (not k or (k[0] >= 0 and k[-1] < keys))
        for row, k in zip(rows, kept, strict=True)
    )


@drawing("ops.list_transpose")
def list_transpose(draw: Draw) -> Call:
    B, H, T, keys = draw.number(0, 2), draw.number(1, 2), draw.size(), draw.size()
    given = {"indices": draw.lists(B, H, T, slots=draw.one(2, 0, 5), keys=keys), "keys": keys}

    def exact(indices: Tensor, keys: int) -> Any:
        assert keys < 2**20 and increasing(indices, keys)  # noqa: PT018
        return lists.list_transpose(indices, keys)

    return Call(ops.list_transpose, given, exact)


def book_of(draw: Draw, K: int, dtype: torch.dtype, D: int | None = None) -> tuple[Tensor, int]:
    """A codebook for K heads, and the D that it holds."""
    M, E, d = draw.number(1, 4), draw.one(4, 1, 16, 20), draw.number(1, 3)
    D = M * d - draw.number(0, d - 1)
    kind = F64 if dtype == F64 else F32
    return draw.floats(draw.one(1, K), M, E, d, dtype=kind), D


def vectors_of(draw: Draw, *, gradient: bool = False) -> tuple[dict[str, Any], tuple[int, int]]:
    B, K, T, dtype = draw.number(0, 2), draw.number(1, 2), draw.size(), draw.dtype()
    book, D = book_of(draw, K, dtype)
    z = draw.floats(B, K * draw.number(1, 2), T, D, dtype=dtype, strided=True)
    return {"z": z, "codebook": book}, book.shape[1:3]


CODES = ("codes", "codebook", "subspaces", "codewords", "pq", "z has", "code")


@drawing("ops.pq_encode")
def pq_encode(draw: Draw) -> Call:
    given, _ = vectors_of(draw)
    given["power"] = draw.one(2, 1)

    def exact(z: Tensor, codebook: Tensor, power: int) -> Tensor:
        assert power in (1, 2)
        return quantisers.pq_encode(z, codebook, power)

    def run(z: Tensor, codebook: Tensor, power: int) -> Tensor:
        found = ops.pq_encode(z, codebook, power=power)
        return found if found.is_meta else ops.unpack_codes(found, *codebook.shape[1:3])

    # Float64's oracle for float32's choice of the nearest may choose another of two that are as near.
    return Call(run, given, exact if given["z"].dtype == F64 else None, names=CODES)


def codes_for(draw: Draw, z: Tensor, codebook: Tensor) -> Tensor:
    return ops.pq_encode(z, codebook)


@drawing("ops.pq_loss")
def pq_loss(draw: Draw) -> Call:
    given, (M, E) = vectors_of(draw)
    given |= {"codes": codes_for(draw, **given), "power": draw.one(2, 1), "eps": draw.one(1e-5, 1e-2)}

    def exact(z: Tensor, codebook: Tensor, codes: Tensor | None, power: int, eps: float) -> Tensor:
        codes = ops.pq_encode(given["z"], given["codebook"], power=power) if codes is None else codes
        assert power in (1, 2) and z.numel() and codebook.shape[1:3] == (M, E)  # noqa: PT018
        numbers = ops.unpack_codes(codes, M, E)
        return quantisers.pq_loss(z.to(codebook.dtype), codebook, numbers, power, eps)

    known = exact if given["z"].numel() else None
    return Call(ops.pq_loss, given, known, ("codebook",), names=CODES)


@drawing("ops.pq_stats")
def pq_stats(draw: Draw) -> Call:
    given, (M, E) = vectors_of(draw)
    book = given["codebook"]
    codes = codes_for(draw, **given)
    del given["codebook"]
    given |= {"codes": codes, "groups": book.shape[0], "subspaces": M, "codewords": E, "width": book.shape[3]}

    def exact(z: Tensor, codes: Tensor, groups: int, subspaces: int, codewords: int, width: int) -> Any:
        numbers = ops.unpack_codes(codes, subspaces, codewords)
        assert (subspaces - 1) * width < z.shape[3] and z.shape[:3] == numbers.shape[:3]  # noqa: PT018
        wide = F64 if z.dtype == F64 else F32
        return quantisers.pq_stats(z.to(wide), numbers, (groups, subspaces, codewords, width))

    return Call(ops.pq_stats, given, exact, names=CODES)


@drawing("ops.unpack_codes", "ops.code_hist")
def unpack_codes(draw: Draw) -> Call:
    given, (M, E) = vectors_of(draw)
    given = {"codes": codes_for(draw, **given), "subspaces": M, "codewords": E}
    if draw.flag():
        return Call(ops.unpack_codes, given, names=CODES)
    given["block"] = draw.one(64, 1, 5)

    def exact(codes: Tensor, subspaces: int, codewords: int, block: int) -> Tensor:
        numbers, T = ops.unpack_codes(codes, subspaces, codewords), codes.shape[2]
        hot = torch.nn.functional.one_hot(numbers, codewords)
        parts = [hot[:, :, t : t + block].sum(2) for t in range(0, T, block)]
        return torch.stack(parts, 2) if parts else hot.new_zeros(*codes.shape[:2], 0, subspaces, codewords)

    return Call(ops.code_hist, given, exact, names=(*CODES, "block"))


@drawing("ops.pq_decode")
def pq_decode(draw: Draw) -> Call:
    given, _ = vectors_of(draw)
    codes = codes_for(draw, **given)
    return Call(ops.pq_decode, {"codes": codes, "codebook": given["codebook"]}, None, names=CODES)


@drawing("ops.adc_table", "ops.table_sums")
def adc_table(draw: Draw) -> Call:
    given, (_, E) = vectors_of(draw)
    q, codebook = given["z"], given["codebook"]
    if draw.flag():
        return Call(ops.adc_table, {"q": q, "codebook": codebook}, names=(*CODES, "q has"))
    given = {"table": ops.adc_table(q, codebook), "codewords": E, "block": draw.one(64, 1, 5)}

    def exact(table: Tensor, codewords: int, block: int) -> Tensor:
        assert 1 <= codewords <= table.shape[4] and table.dtype == torch.uint8  # noqa: PT018
        table = table[..., :codewords].int()
        parts = [table[:, :, t : t + block].sum(2) for t in range(0, table.shape[2], block)]
        return torch.stack(parts, 2) if parts else table[:, :, :0]

    return Call(ops.table_sums, given, exact, names=(*CODES, "block"))


@drawing("ops.topl_threshold", "ops.topl_indices", "ops.KeySelection")
def topl(draw: Draw) -> Call:
    (B, H, K), T = heads_of(draw), draw.size()
    S, dtype = T + draw.one(0, 0, 3), draw.dtype()
    placed = any_layout(draw, B, T, S)
    book, D = book_of(draw, K, dtype)
    q, k = draw.floats(B, H, T, D, dtype=dtype, strided=True), draw.floats(B, K, S, D, dtype=dtype)
    match, causal = draw.flag(), draw.flag()
    given: dict[str, Any] = {"key_codes": ops.pq_encode(k, book), "budget": draw.one(1, 3, 10)}
    if match:
        given |= {"query_codes": ops.pq_encode(q, book), "subspaces": book.shape[1], "codewords": book.shape[2]}
    else:
        given |= {"q": q, "codebook": book}
    given |= {"causal": causal, "window": draw.one(0, 3) if causal else 0, "sinks": draw.one(0, 2)}
    given |= {"model_window": draw.one(None, 4), "slots": draw.one(0, 2, 12)}

    def run(key_codes: Tensor, budget: int, slots: int, **rest: Any) -> Any:
        selection = ops.topl_threshold(key_codes, budget, layout=placed, **rest)
        named = {n: rest[n] for n in ("causal", "model_window")}
        return selection.kept, ops.topl_indices(selection, slots, q=rest.get("q"), layout=placed, **named)

    def exact(key_codes: Tensor, budget: int, slots: int, **rest: Any) -> Any:
        window, sinks, model_window = rest["window"], rest["sinks"], rest["model_window"]
        assert 1 <= budget < 2**31 and 0 <= slots < 2**20 and 0 <= (model_window or 0) < 2**31  # noqa: PT018
        assert 0 <= window < 2**31 and 0 <= sinks < 2**31 and (rest["causal"] or not window)  # noqa: PT018
        reach = attentions.visible(AttentionPattern.full(rest["causal"]), H, T, S, placed, model_window)
        near = AttentionPattern.window(window, sinks) if window else None
        close = attentions.visible(near, H, T, S, placed, model_window) if near else torch.zeros_like(reach)
        key_pos = torch.arange(S) if placed is None else placed.keys[1].long()
        flags = None if placed is None or len(placed.keys) < 3 else (placed.keys[2], placed.queries[2])
        close = close | (reach & (key_pos < sinks)[..., None, :].unsqueeze(0 if key_pos.dim() == 1 else 1))
        if flags is not None:
            marks = (flags[0] & 1).bool()[:, None, None, :] | (flags[1] & 1).bool()[:, None, :, None]
            close = close | (reach & marks)
        sizes = {} if match else {"subspaces": rest["codebook"].shape[1], "codewords": rest["codebook"].shape[2]}
        parts = {n: rest[n] for n in ("subspaces", "codewords", "query_codes", "codebook") if n in rest}
        nothing = torch.zeros(B, H, T)
        selection = ops.KeySelection(key_codes, nothing, nothing, nothing, **{**sizes, **parts})
        found = selections.scores(selection, rest.get("q"))
        kept = selections.topl_threshold(found, reach.expand(found.shape), close.expand(found.shape), budget)
        return kept.sum(-1), selections.topl_indices(kept, slots)

    # Scores of other dtypes are rounded before they are compared; what is equal in one need not be in the other.
    known = exact if match else None
    # Codes that no codeword has score something or other: nothing but `unpack_codes` reads them all to refuse them.
    free = () if book.shape[2] in (16, 256) else ("key_codes", "query_codes")
    return Call(run, given, known, names=("topl", *CODES, "q has", "queries", "longspan"), free=free)


@drawing("ops.BlockRanges", "ops.block_select")
def block_select(draw: Draw) -> Call:
    (B, H, K), T, block = heads_of(draw), draw.size(), draw.one(64, 5)
    rows, M, E = math.ceil(T / block), draw.number(1, 3), draw.number(1, 4)
    if draw.flag():
        given = {"queries": T, "keys": T, "model_window": draw.one(None, 3), "block": block}
        return Call(ops.BlockRanges.of, given, sized=("queries", "keys"), names=("BlockRanges",))
    ranges = ops.BlockRanges.of(T, T, block=block)
    given = {
        "queries": draw.integers(B, H, rows, M, E, below=9, dtype=torch.int32),
        "keys": draw.integers(B, K, rows, M, E, below=9, dtype=torch.int32),
        "ranges_first": ranges.first,
        "ranges_last": ranges.last,
        "budget": draw.one(1, 3),
        "first": draw.one(0, 1),
        "recent": draw.one(1, 2),
    }

    def run(
        queries: Tensor, keys: Tensor, ranges_first: Tensor, ranges_last: Tensor, budget: int, **rest: int
    ) -> Tensor:
        return ops.block_select(queries, keys, ops.BlockRanges(ranges_first, ranges_last), budget, **rest)

    def exact(
        queries: Tensor, keys: Tensor, ranges_first: Any, ranges_last: Any, budget: int, first: int, recent: int
    ) -> Tensor:
        assert budget >= 1 and first >= 0 and recent >= 1  # noqa: PT018
        out = torch.full((B, keys.shape[1], rows, min(budget, keys.shape[2])), -1, dtype=torch.int32)
        for b in range(B):
            for g in range(keys.shape[1]):
                for i in range(rows):
                    low, high = (int(x[0 if len(x) == 1 else b, i]) for x in (ranges_first, ranges_last))
                    may = list(range(max(low, 0), min(high, keys.shape[2])))
                    share = H // keys.shape[1]
                    mine = queries[b, g * share : (g + 1) * share, i].long().sum(0)
                    rank = {
                        j: ((j < low + first) or j >= high - recent, int((mine * keys[b, g, j].long()).sum()), j)
                        for j in may
                    }
                    best = sorted(sorted(may, key=lambda j: (rank[j][0], j if rank[j][0] else rank[j][1], j))[-budget:])
                    out[b, g, i, : len(best)] = torch.tensor(best, dtype=torch.int32)
        return out

    return Call(run, given, exact, names=("block_select", "ranges"))
