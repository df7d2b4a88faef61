"""Drawings of the entries of `longspan.kernels`: NumPy arrays, whose spoils are also those of memory."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longspan import kernels
from longspan.ops.reference import attention as attentions
from longspan.ops.reference import glu as glus
from longspan.ops.reference import norm as norms
from longspan.ops.reference import rope as ropes
from longspan.ops.reference import topl as choices
from tests.fuzz import kernel_oracles as oracles
from tests.fuzz.calls import Call, drawing
from tests.fuzz.draw import F32, F64, Draw


def arrays(given: dict[str, Any]) -> dict[str, Any]:
    """Tensors as NumPy arrays, in lists too."""

    def one(x: Any) -> Any:
        if isinstance(x, list):
            return [one(each) for each in x]
        return x.numpy() if isinstance(x, Tensor) else x

    return {n: one(x) for n, x in given.items()}


def wide(x: Any) -> Any:
    """Arrays as tensors, in lists too."""
    if isinstance(x, list):
        return [wide(each) for each in x]
    return torch.from_numpy(x.copy()) if isinstance(x, np.ndarray) else x


def made(name: str, draw: Draw, given: dict[str, Any], exact: Any = None, run: Any = None, **rest: Any) -> Call:
    """A call on one or two threads; exact takes tensors. run: what to call instead of the kernel `name` alone."""
    entry, given = run or getattr(kernels, name), arrays({**given, "threads": draw.one(1, 2)})

    def oracle(threads: int, **named: Any) -> Any:
        return exact(**{n: wide(x) for n, x in named.items()})

    return Call(entry, given, None if exact is None else oracle, **rest)


def real(draw: Draw) -> torch.dtype:
    return draw.one(F32, F64)


@drawing("kernels.glu_fwd")
def glu_fwd(draw: Draw) -> Call:
    T, F, dtype = draw.size(), draw.size(), real(draw)
    given = {
        "gate": draw.floats(T, F, dtype=dtype, strided=True),
        "up": draw.maybe(lambda: draw.floats(T, F, dtype=dtype)),
    }
    given |= {"activation": draw.one("silu", "gelu", "relu2"), "y": draw.maybe(lambda: draw.floats(T, F, dtype=dtype))}

    def exact(gate: Tensor, up: Tensor | None, activation: str, y: Any) -> Tensor:
        return glus.glu(gate, up, activation)

    return made("glu_fwd", draw, given, exact)


@drawing("kernels.glu_bwd")
def glu_bwd(draw: Draw) -> Call:
    T, F, dtype = draw.size(), draw.size(), real(draw)
    given: dict[str, Any] = {n: draw.floats(T, F, dtype=dtype) for n in ("dy", "gate", "up")}
    return made("glu_bwd", draw, {**given, "activation": draw.one("silu", "relu2")}, oracles.glu_bwd)


@drawing("kernels.norm_fwd", "kernels.norm_bwd")
def norm(draw: Draw) -> Call:
    T, C, dtype = draw.size(), draw.size(1), real(draw)
    x = draw.floats(T, C, dtype=dtype, strided=True)
    if draw.flag():
        given = {"dy": draw.floats(T, C, dtype=dtype), "x": x, "rstd": draw.floats(T, dtype=dtype)}
        weight = draw.floats(C, dtype=dtype)
        return made(
            "norm_bwd", draw, {**given, "weight": weight, "need_dweight": True, "weight_offset": 0.0}, oracles.norm_bwd
        )
    given = {"x": x, "weight": draw.floats(C, dtype=dtype), "bias": draw.maybe(lambda: draw.floats(C, dtype=dtype))}

    def exact(x: Tensor, weight: Tensor, bias: Any, centered: bool, eps: float) -> Any:
        mean = x.mean(-1) if centered else torch.zeros(len(x), dtype=x.dtype)
        rows = x - mean[:, None]
        rstd = (rows.square().mean(-1) + eps).rsqrt()
        y = norms.norm(x, weight, bias, centered=centered, eps=eps)[0]
        return y, None, rstd, mean if centered else None

    return made("norm_fwd", draw, {**given, "centered": draw.flag(), "eps": 1e-2}, exact)


@drawing("kernels.rope", "kernels.rope_")
def rope(draw: Draw) -> Call:
    B, H, T, N, dtype = draw.number(0, 2), draw.number(1, 3), draw.size(), draw.number(0, 4), real(draw)
    tables = {n: draw.floats(9, N, dtype=dtype) for n in ("cos", "sin")}
    given = {"x": draw.floats(B, H, T, 2 * N + 1, dtype=dtype, strided=True), **tables}
    given["positions"] = draw.integers(1, T, below=9)

    def exact(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, interleaved: bool) -> Tensor:
        return ropes.rope(x, cos, sin, positions, interleaved=interleaved)

    return made(draw.one("rope", "rope_"), draw, {**given, "interleaved": draw.flag()}, exact, free=("positions",))


@drawing("kernels.gemm")
def gemm(draw: Draw) -> Call:
    M, K, N, dtype = draw.size(), draw.size(), draw.size(), real(draw)
    given = {"a": draw.floats(M, K, dtype=dtype, strided=True), "b": draw.floats(K, N, dtype=dtype, strided=True)}
    return made("gemm", draw, given, lambda a, b: a @ b)


def heads_of(draw: Draw) -> dict[str, Any]:
    B, K, T, D, dtype = draw.number(0, 2), draw.number(1, 2), draw.size(), draw.one(8, 1, 33), real(draw)
    q = draw.floats(B, K * draw.number(1, 2), T, D, dtype=dtype, strided=True)
    return {"q": q, **{n: draw.floats(B, K, T, D, dtype=dtype, strided=True) for n in "kv"}}


@drawing("kernels.attention_fwd", "kernels.attention_bwd", "kernels.AttentionSpec", "kernels.attention_visible_pairs")
def attention(draw: Draw) -> Call:
    given, kind = heads_of(draw), draw.one("fwd", "bwd", "pairs")
    spec = {
        "pattern": draw.one("full", "window", "s2"),
        "window": draw.one(1, 5),
        "group_size": 2,
        "sinks": draw.one(0, 2),
    }
    if kind == "pairs":
        sizes = {"batch": draw.number(0, 2), "heads": 2, "queries": draw.size(), "keys": draw.size()}
        run = lambda batch, heads, queries, keys, **rest: kernels.attention_visible_pairs(  # noqa: E731
            kernels.AttentionSpec(**rest), batch, heads, queries, keys
        )
        names, sized = ("AttentionSpec", "pattern"), ("batch", "heads", "queries", "keys")
        return Call(run, {**spec, **sizes}, oracles.visible_pairs, sized=sized, names=names)
    if kind == "bwd":
        q = given["q"]
        given = {"dout": draw.floats(*q.shape, dtype=q.dtype), **given, "out": draw.floats(*q.shape, dtype=q.dtype)}
        given["lse"] = draw.floats(*q.shape[:3], dtype=q.dtype) + 9

    def call(threads: int, **rest: Any) -> Any:
        made_of = {n: rest.pop(n) for n in spec}
        entry = kernels.attention_bwd if kind == "bwd" else kernels.attention_fwd
        return entry(**rest, spec=kernels.AttentionSpec(**made_of), threads=threads)

    def exact(threads: int, **rest: Any) -> Any:
        tensors = {n: wide(rest.pop(n)) for n in given}
        found, q, k = oracles.pattern(**rest), tensors["q"], tensors["k"]
        if kind == "fwd":
            return attentions.attention(**tensors, pattern=found)
        return oracles.attention_bwd(**tensors, mask=attentions.visible(found, *q.shape[1:3], k.shape[2]))

    names = ("AttentionSpec", "pattern", "heads", "attention")
    return Call(call, arrays({**given, **spec, "threads": 1}), exact, names=names)


@drawing("kernels.list_attention_fwd", "kernels.list_attention_bwd", "kernels.list_transpose")
def list_attention(draw: Draw) -> Call:
    given, kind = heads_of(draw), draw.one("fwd", "bwd", "transpose")
    q, keys = given["q"], given["k"].shape[2]
    indices = draw.lists(*q.shape[:3], slots=draw.number(0, 3), keys=keys)
    if kind == "transpose":
        return made("list_transpose", draw, {"indices": indices, "keys": keys}, oracles.list_transpose, sized=("keys",))
    given["indices"] = indices
    if kind == "bwd":
        starts, rows = kernels.list_transpose(indices.numpy(), keys)
        given |= {n: draw.floats(*q.shape, dtype=q.dtype) for n in ("dout", "out")}
        given |= {"lse": draw.floats(*q.shape[:3], dtype=q.dtype) + 9, "starts": starts, "rows": rows}
    exact = oracles.list_fwd if kind == "fwd" else oracles.list_bwd
    return made(f"list_attention_{kind}", draw, given, exact, names=("list_attention", "heads"))


@drawing("kernels.pq_encode", "kernels.pq_loss", "kernels.pq_stats", "kernels.adc_table")
def quantiser(draw: Draw) -> Call:
    kind, dtype, M, E, d = (
        draw.one("encode", "loss", "stats", "table"),
        real(draw),
        draw.number(1, 3),
        draw.one(4, 16, 20),
        2,
    )
    z = draw.floats(draw.number(0, 2), 2, draw.size(), M * d, dtype=dtype, strided=True)
    book = draw.floats(draw.one(1, 2), M, E, d, dtype=dtype)
    if kind == "table":
        return made("adc_table", draw, {"q": z, "codebook": book}, choices.adc_table, bitwise=True)
    if kind == "encode":
        given = {"z": z, "codebook": book, "power": draw.one(1, 2)}
        return made("pq_encode", draw, given, oracles.encode, bitwise=True)
    codes = kernels.pq_encode(z.numpy(), book.numpy())
    if kind == "loss":
        return made(
            "pq_loss",
            draw,
            {"z": z, "codebook": book, "codes": codes, "need_dz": draw.flag()},
            oracles.quantiser_loss,
            names=("pq", "codebook"),
        )
    sizes = {"groups": len(book), "subspaces": M, "codewords": E, "width": d}
    given = {"z": z, "codes": codes, **sizes}
    return made("pq_stats", draw, given, oracles.quantiser_stats, sized=("width",), names=("pq", "codes"))


@drawing("kernels.topl_threshold", "kernels.topl_indices")
def topl(draw: Draw) -> Call:
    M, E, T = draw.number(1, 3), draw.one(4, 16), draw.size()
    z = draw.floats(draw.number(0, 2), 2, T, M * 2)
    codes = kernels.pq_encode(z.numpy(), draw.floats(1, M, E, 2).numpy())
    given = {"key_codes": codes, "query_codes": codes, "subspaces": M, "codewords": E, "window": draw.one(0, 3)}
    if draw.flag():

        def run(budget: int, **rest: Any) -> Any:
            threshold, cut, kept = kernels.topl_threshold(budget=budget, **rest)
            return kept, kernels.topl_indices(threshold=threshold, cut=cut, slots=budget, **rest)

        given |= {"budget": draw.one(1, 4)}
        free = () if E == 16 else ("key_codes", "query_codes")  # codes that no codeword has score something or other
        names = ("topl", "codes", "tokens", "heads")
        return made("topl_threshold", draw, given, oracles.kept_keys, run, sized=("budget",), names=names, free=free)
    threshold, cut, _ = kernels.topl_threshold(codes, 3, query_codes=codes, subspaces=M, codewords=E)
    given |= {"threshold": threshold, "cut": cut, "slots": draw.one(0, 3)}
    return made("topl_indices", draw, given, sized=("slots",), names=("codes", "tokens", "heads"))


@drawing("kernels.block_score")
def block_score(draw: Draw) -> Call:
    M, block, dtype = draw.size(1), draw.one(5, 64), real(draw)
    starts = torch.arange(0, M, block, dtype=torch.int32)
    given = {n: draw.floats(M, 2, 8, dtype=dtype, strided=True) for n in "qk"}
    given |= {
        "starts": starts,
        "counts": (M - starts).clamp(max=block),
        "segments": torch.tensor([0, len(starts)]).int(),
    }
    given |= {"most_blocks": len(starts)}
    return made("block_score", draw, given, oracles.block_score, sized=("most_blocks",), names=("block", "segment"))


@drawing("kernels.lora_linear_fwd", "kernels.lora_linear_bwd")
def lora(draw: Draw) -> Call:
    T, C, N, R, dtype = draw.size(), draw.size(1), draw.size(1), draw.number(1, 4), real(draw)
    given = {"x": draw.floats(T, C, dtype=dtype, strided=True), "weight": draw.floats(N, C, dtype=dtype, strided=True)}
    given |= {"lora_a": draw.floats(R, C, dtype=dtype), "lora_b": draw.floats(N, R, dtype=dtype), "scaling": 0.5}
    if draw.flag():
        return made("lora_linear_fwd", draw, given, oracles.lora_fwd)
    given |= {"dy": draw.floats(T, N, dtype=dtype), "s": draw.floats(T, R, dtype=dtype)}
    return made("lora_linear_bwd", draw, given, oracles.lora_bwd)


@drawing("kernels.linear_cross_entropy", "kernels.cross_entropy_rows")
def cross_entropy(draw: Draw) -> Call:
    T, C, V, dtype = draw.size(), draw.size(1), draw.size(1), real(draw)
    given = {"hidden": draw.floats(T, C, dtype=dtype), "weight": draw.floats(V, C, dtype=dtype)}
    given |= {"labels": draw.integers(T, below=V), "segment": draw.one(2048, 3), "need_dhidden": True}
    return made("linear_cross_entropy", draw, given, oracles.cross_entropy, names=("label", "dtype"))


@drawing("kernels.grouped_expand", "kernels.grouped_reduce", "kernels.grouped_weight")
def grouped(draw: Draw) -> Call:
    n, Nb, C, dtype, kind = (
        draw.size(),
        draw.number(1, 5),
        draw.size(1),
        real(draw),
        draw.one("expand", "reduce", "weight"),
    )
    given: dict[str, Any] = {"offsets": torch.tensor(draw.cuts(n, 4)).int(), "blocks": 4, "active": 1}
    if kind == "weight":
        given |= {"a": draw.floats(n, Nb, dtype=dtype), "b": draw.floats(n, C, dtype=dtype)}
    else:
        sizes = (4 * Nb, C) if kind == "expand" else (C, 4 * Nb)
        given |= {
            "x": draw.floats(n, C if kind == "expand" else Nb, dtype=dtype),
            "weight": draw.floats(*sizes, dtype=dtype),
        }
    exact = functools.partial(oracles.grouped_product, kind)
    return made(f"grouped_{kind}", draw, given, exact, names=("grouped", "blocks"))


@drawing("kernels.kth_magnitude", "kernels.magnitude_histogram", "kernels.squared_norms")
def magnitude(draw: Draw) -> Call:
    given: dict[str, Any] = {"tensors": [draw.floats(3, 5), draw.floats(draw.size(1))], "groups": [0, 1]}
    kind = draw.one("kth_magnitude", "magnitude_histogram", "squared_norms")
    names = ("group", "magnitude", "tensors", "wanted")
    if kind == "kth_magnitude":

        def run(threads: int, **rest: Any) -> Any:
            bits, _, kept, squares = kernels.kth_magnitude(**rest, threads=threads)
            return bits, kept, squares

        given |= {"wanted": torch.tensor([2, 1]), "exact": True}
        return made(kind, draw, given, oracles.kth, run, names=names)
    oracle = oracles.squares if kind == "squared_norms" else None
    return made(kind, draw, {**given, "count": 2}, oracle, names=names)


@drawing("kernels.perturb_", "kernels.es_update_")
def perturb(draw: Draw) -> Call:
    one = lambda dtype: torch.ones(1, dtype=dtype)  # noqa: E731
    given: dict[str, Any] = {"targets": [draw.floats(3, 5), draw.floats(draw.size())]}
    if draw.flag():
        return made("perturb_", draw, {**given, "scale": one(F32), "seed": one(torch.int64), "step": one(torch.int64)})
    given |= {"coefficients": one(F32), "seeds": one(torch.int64), "steps": one(torch.int64)}
    return made("es_update_", draw, given, names=("targets",))


@drawing("kernels.masked_adamw_", "kernels.masked_sgd_")
def masked(draw: Draw) -> Call:
    size, adamw = draw.size(), draw.flag()
    state = ("exp_avgs", "exp_avg_sqs") if adamw else ("buffers",)
    given: dict[str, Any] = {n: [draw.floats(3, size).abs()] for n in ("params", "grads", *state)}
    given |= {
        "scalars": torch.full((8 if adamw else 3,), 0.5),
        "factors": torch.ones(1),
        "mode": draw.one("grad", "freeze"),
    }
    return made("masked_adamw_" if adamw else "masked_sgd_", draw, given, names=("params", "param"))


@drawing("kernels.instruction_set")
def instruction_set(draw: Draw) -> Call:
    return Call(lambda unused: kernels.instruction_set() and unused, {"unused": 1})
