"""Drawings of ops on rows: activations, norms, linear maps, rotary embedding, loss, whole feed-forward branches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longspan import ops
from longspan.ops.reference import glu as glus
from longspan.ops.reference import lora as loras
from longspan.ops.reference import loss as losses
from longspan.ops.reference import norm as norms
from longspan.ops.reference import rope as ropes
from tests.fuzz.calls import Call, drawing
from tests.fuzz.draw import BF16, F32, F64, Draw


def shape(draw: Draw, least: int = 0) -> tuple[int, ...]:
    return (*((draw.size(),) if draw.flag() else ()), draw.size(), draw.size(least))


def gated(gate: Tensor, up: Tensor | None, activation: str) -> Tensor:
    if up is None:
        gate, up = gate.chunk(2, -1)
    return glus.glu(gate, up, activation)


@drawing("ops.glu")
def glu(draw: Draw) -> Call:
    sizes, dtype = shape(draw), draw.dtype()
    up = draw.maybe(lambda: draw.floats(*sizes, dtype=dtype, strided=True))
    columns = sizes[-1] if up is not None else 2 * sizes[-1]
    gate = draw.floats(*sizes[:-1], columns, dtype=dtype, strided=True)
    given = {"gate": gate, "up": up, "activation": draw.one(*ops.ACTIVATIONS)}
    return Call(ops.glu, given, gated, ("gate",) if up is None else ("gate", "up"))


@drawing("ops.swiglu", "ops.geglu")
def named_glu(draw: Draw) -> Call:
    sizes, dtype = shape(draw), draw.dtype()
    given = {n: draw.floats(*sizes, dtype=dtype, strided=True) for n in ("gate", "up")}
    if draw.flag():
        return Call(ops.swiglu, given, lambda gate, up: gated(gate, up, "silu"), ("gate", "up"), names=("glu",))
    kinds = {"none": "gelu", "tanh": "gelu_tanh"}
    given["approximate"] = draw.one(*kinds)
    return Call(
        ops.geglu,
        given,
        lambda gate, up, approximate: gated(gate, up, kinds[approximate]),
        ("gate", "up"),
        names=("glu",),
    )


@drawing("ops.activation")
def activation(draw: Draw) -> Call:
    x = draw.floats(*shape(draw), dtype=draw.dtype(), strided=True)
    given = {"x": x, "name": draw.one(*ops.ACTIVATIONS)}
    return Call(ops.activation, given, lambda x, name: glus.glu(x, None, name), ("x",))


def vectors(draw: Draw, columns: int, dtype: torch.dtype, *names: str) -> dict[str, Tensor | None]:
    """Vectors of one dtype, that of the rows or float32 beside bfloat16."""
    kind = draw.one(dtype, F32) if dtype == BF16 else dtype
    return {n: draw.maybe(lambda: draw.floats(columns, dtype=kind)) for n in names}


def learned(given: dict[str, Any], *names: str) -> tuple[str, ...]:
    return tuple(n for n in names if given.get(n) is not None)


@drawing("ops.rms_norm")
def rms_norm(draw: Draw) -> Call:
    sizes, dtype = shape(draw, 1), draw.dtype()
    given: dict[str, Any] = {"x": draw.floats(*sizes, dtype=dtype, strided=True)}
    given |= vectors(draw, sizes[-1], dtype, "weight")
    given["residual"] = draw.maybe(lambda: draw.floats(*sizes, dtype=dtype, strided=True))
    given |= {"eps": draw.one(1e-6, 1e-2), "weight_offset": draw.one(0.0, 1.0)}

    def exact(x: Any, weight: Any, residual: Any, eps: float, weight_offset: float) -> Any:
        y, total = norms.norm(x, weight, residual=residual, eps=eps, weight_offset=weight_offset)
        return y if residual is None else (y, total)

    return Call(ops.rms_norm, given, exact, learned(given, "x", "weight", "residual"))


@drawing("ops.layer_norm")
def layer_norm(draw: Draw) -> Call:
    sizes, dtype = shape(draw, 1), draw.dtype()
    given: dict[str, Any] = {"x": draw.floats(*sizes, dtype=dtype, strided=True)}
    given |= vectors(draw, sizes[-1], dtype, "weight", "bias")
    given["residual"] = draw.maybe(lambda: draw.floats(*sizes, dtype=dtype, strided=True))
    given["eps"] = draw.one(1e-5, 1e-2)

    def exact(x: Any, weight: Any, bias: Any, residual: Any, eps: float) -> Any:
        y, total = norms.norm(x, weight, bias, residual=residual, centered=True, eps=eps)
        return y if residual is None else (y, total)

    return Call(ops.layer_norm, given, exact, learned(given, "x", "weight", "bias", "residual"))


NORM = ("norm_weight", "norm_bias", "kind", "norm_eps", "offset")


def norm_arguments(draw: Draw, columns: int, dtype: torch.dtype) -> dict[str, Any]:
    """The fields of a norm by names of their own."""
    found: dict[str, Any] = vectors(draw, columns, dtype, "norm_weight", "norm_bias")
    return {**found, "kind": draw.one("rms", "layer"), "norm_eps": draw.one(1e-2, 1e-6), "offset": draw.one(0.0, 1.0)}


def norm_of(given: dict[str, Any]) -> ops.Norm:
    return ops.Norm(*(given[n] for n in NORM))


def normed(x: Tensor, given: dict[str, Any]) -> Tensor:
    weight, bias, kind, eps, offset = (given[n] for n in NORM)
    assert kind in ("rms", "layer")
    y = norms.norm(x, weight, bias, centered=kind == "layer", eps=eps, weight_offset=offset)[0]
    return y.to(x.dtype)


NAMED = ("norm", "weight", "bias", "eps", "weight_offset")


@drawing("ops.apply_norm", "ops.Norm")
def apply_norm(draw: Draw) -> Call:
    sizes, dtype = shape(draw, 1), draw.dtype()
    given = {"x": draw.floats(*sizes, dtype=dtype, strided=True), **norm_arguments(draw, sizes[-1], dtype)}
    return Call(
        lambda x, **rest: ops.apply_norm(norm_of(rest), x),
        given,
        lambda x, **rest: normed(x, rest),
        learned(given, "x", "norm_weight", "norm_bias"),
        names=NAMED,
    )


MAP = ("weight", "bias", "lora_a", "lora_b", "scaling")


def map_arguments(
    draw: Draw, N: int, C: int, dtype: torch.dtype, mark: str = "", adapter: bool = True
) -> dict[str, Any]:
    """The fields of a projection, each name ending in `mark`."""
    rank = draw.one(1, 3, 8) if adapter and draw.flag() else 0
    kind = draw.one(dtype, F32) if dtype == BF16 else dtype
    found = {
        "weight": draw.floats(N, C, dtype=dtype, scale=0.3, strided=True),
        "bias": draw.maybe(lambda: draw.floats(N, dtype=dtype)),
        "lora_a": draw.floats(rank, C, dtype=kind, scale=0.3) if rank else None,
        "lora_b": draw.floats(N, rank, dtype=kind, scale=0.3) if rank else None,
        "scaling": draw.one(1.0, 0.5),
    }
    return {n + mark: x for n, x in found.items()}


def projection_of(given: dict[str, Any], mark: str = "", residual: Tensor | None = None) -> ops.Projection:
    return ops.Projection(*(given[n + mark] for n in MAP), residual=residual)


def mapped(x: Tensor, given: dict[str, Any], mark: str = "", residual: Tensor | None = None) -> Tensor:
    weight, bias, a, b, scaling = (given[n + mark] for n in MAP)
    wide = F64 if x.dtype == F64 else F32
    y = loras.lora_linear(*(None if t is None else t.to(wide) for t in (x, weight, bias, a, b)), scaling)
    return (y if residual is None else y + residual.to(wide)).to(x.dtype)


def of_map(given: dict[str, Any], *marks: str) -> tuple[str, ...]:
    return learned(given, *(n + mark for mark in marks or ("",) for n in MAP[:4]))


@drawing("ops.lora_linear", "ops.Projection")
def lora_linear(draw: Draw) -> Call:
    sizes, N, dtype = shape(draw, 1), draw.size(1), draw.dtype()
    given = {"x": draw.floats(*sizes, dtype=dtype, strided=True), **map_arguments(draw, N, sizes[-1], dtype)}
    given["residual"] = draw.maybe(lambda: draw.floats(*sizes[:-1], N, dtype=dtype, strided=True))
    return Call(
        ops.lora_linear,
        given,
        lambda x, residual, **rest: mapped(x, rest, residual=residual),
        learned(given, "x", "residual") + of_map(given),
        names=("lora_linear",),
    )


@drawing("ops.norm_lora_linear", "ops.norm_gather_linear")
def norm_lora_linear(draw: Draw) -> Call:
    rows, C, dtype = draw.size(), draw.size(1), draw.dtype()
    given = {"x": draw.floats(rows, C, dtype=dtype, strided=True), **norm_arguments(draw, C, dtype)}
    marks = ("_0", "_1")[: draw.number(1, 2)]
    for mark in marks:
        given |= map_arguments(draw, draw.size(1), C, dtype, mark)
    kept = draw.maybe(lambda: draw.chosen(draw.number(0, rows), rows))
    if kept is not None:
        given["rows"] = kept

    def run(x: Tensor, rows: Tensor | None = None, **rest: Any) -> Any:
        group = [projection_of(rest, mark) for mark in marks]
        if rows is None:
            return ops.norm_lora_linear(x, group, norm_of(rest))
        return ops.norm_gather_linear(x, rows, group, norm_of(rest))

    def exact(x: Tensor, rows: Tensor | None = None, **rest: Any) -> Any:
        z = normed(x if rows is None else x[different(rows, x)], rest)
        return tuple(mapped(z, rest, mark) for mark in marks)

    names = learned(given, "x", "norm_weight", "norm_bias") + of_map(given, *marks)
    return Call(run, given, exact, names, names=("norm_lora_linear", "gather_rows", "lora", "weight", "bias"))


def different(rows: Tensor, x: Tensor) -> Tensor:
    """Rows that an op may be given."""
    fits = rows.dtype == torch.int64 and rows.dim() == 1 and len(rows.unique()) == len(rows)
    assert fits and all(0 <= int(r) < len(x) for r in rows)  # noqa: PT018
    return rows


@drawing("ops.rope", "ops.rope_")
def rope(draw: Draw) -> Call:
    B, H, T, N, dtype = draw.number(0, 2), draw.number(1, 3), draw.size(), draw.number(0, 4), draw.dtype()
    places = draw.one(5, 100)
    tables = torch.float64 if dtype == F64 else F32
    given = {
        "x": draw.floats(B, H, T, 2 * N + draw.number(1, 3), dtype=dtype, strided=True),
        "cos": draw.floats(places, N, dtype=tables, strided=True),
        "sin": draw.floats(places, N, dtype=tables, strided=True),
        "positions": draw.integers(*((draw.one(1, B),) if draw.flag() else ()), T, below=places),
        "interleaved": draw.flag(),
    }
    in_place = draw.flag()

    def run(x: Tensor, **rest: Any) -> Tensor:
        return ops.rope_(x * 1 if x.requires_grad else x, **rest) if in_place else ops.rope(x, **rest)

    def exact(x: Tensor, positions: Tensor, **rest: Any) -> Tensor:
        assert not len(positions.reshape(-1)) or int(positions.min()) >= 0
        return ropes.rope(x, positions=positions, **rest).to(x.dtype)

    return Call(run, given, exact, ("x",), names=("rope",))


@drawing("ops.rope_packed_")
def rope_packed(draw: Draw) -> Call:
    T, N, dtype, layout = draw.size(), draw.number(0, 4), draw.dtype(), draw.one("blocks", "heads")
    heads = draw.number(1, 3)
    kv_heads, D = (heads if layout == "heads" else draw.number(1, 2)), 2 * N + draw.number(1, 2)
    tables = torch.float64 if dtype == F64 else F32
    given = {
        "x": draw.floats(T, (heads + 2 * kv_heads) * D, dtype=dtype, strided=True),
        "cos": draw.floats(9, N, dtype=tables),
        "sin": draw.floats(9, N, dtype=tables),
        "positions": draw.integers(T, below=9),
        "heads": heads,
        "kv_heads": kv_heads,
        "layout": layout,
        "interleaved": draw.flag(),
    }

    def exact(
        x: Tensor, cos: Any, sin: Any, positions: Any, heads: int, kv_heads: int, layout: str, interleaved: bool
    ) -> Any:
        assert layout == "blocks" or (layout == "heads" and heads == kv_heads)
        assert 1 <= heads < 100 and 1 <= kv_heads < 100  # noqa: PT018
        assert not len(positions) or int(positions.min()) >= 0
        if layout == "blocks":
            each = x.reshape(len(x), heads + 2 * kv_heads, x.shape[1] // (heads + 2 * kv_heads))
            turned = torch.arange(each.shape[1]) < heads + kv_heads
        else:
            each = x.reshape(len(x), 3 * heads, x.shape[1] // (3 * heads))
            turned = torch.arange(3 * heads) % 3 < 2
        y = ropes.rope(each.transpose(0, 1)[None], cos, sin, positions, interleaved=interleaved)[0].transpose(0, 1)
        return torch.where(turned[:, None], y.to(x.dtype), each).reshape(x.shape)

    return Call(lambda x, **rest: ops.rope_packed_(x * 1 if x.requires_grad else x, **rest), given, exact, ("x",))


@drawing("ops.rope_table")
def rope_table(draw: Draw) -> Call:
    given = {
        "inv_freq": draw.floats(draw.size(), dtype=draw.one(F32, F64)).abs(),
        "length": draw.size(),
        "scaling": draw.one(1.0, 0.5),
    }

    def exact(inv_freq: Tensor, length: int, scaling: float) -> Any:
        angles = torch.arange(length)[:, None] * inv_freq[None].double()
        return (angles.cos() * scaling).float(), (angles.sin() * scaling).float()

    return Call(ops.rope_table, given, exact, sized=("length",))


@drawing("ops.segment_linear_cross_entropy")
def cross_entropy(draw: Draw) -> Call:
    sizes, V, dtype = shape(draw, 1), draw.size(1), draw.dtype()
    labels = draw.integers(*sizes[:-1], below=V, dtype=draw.one(torch.int64, torch.int32))
    reduction = draw.one("mean", "sum", "none")
    given = {
        "hidden": draw.floats(*sizes, dtype=dtype, strided=True),
        "weight": draw.floats(V, sizes[-1], dtype=dtype, strided=True, scale=0.3),
        "labels": labels.masked_fill(draw.integers(*sizes[:-1], below=4) == 0, -100),
        "token_weights": draw.maybe(lambda: draw.floats(*sizes[:-1])),
        "segment": draw.one(2048, 1, 3),
        "ignore_index": -100,
        "reduction": reduction,
        "bias": draw.maybe(lambda: draw.floats(V, dtype=dtype)),
        "logit_softcap": draw.one(None, 5.0),
        "logit_scale": draw.one(1.0, 0.5),
        "num_items": draw.one(None, 3) if reduction == "mean" else None,
    }

    def exact(hidden: Tensor, labels: Tensor, segment: int, **rest: Any) -> Tensor:
        assert labels.shape == hidden.shape[:-1]
        wide = F64 if hidden.dtype == F64 else F32
        rest = {n: x.to(wide) if isinstance(x, Tensor) else x for n, x in rest.items()}
        return losses.segment_linear_cross_entropy(hidden.to(wide), labels=labels, **rest)

    return Call(ops.segment_linear_cross_entropy, given, exact, learned(given, "hidden", "weight", "bias"))


def branch(draw: Draw) -> tuple[dict[str, Any], tuple[str, ...], bool]:
    """Rows x, a norm, gate and up (or one), and down; what they are called, and whether one holds both."""
    rows, C, F, dtype = draw.size(1), draw.size(1), draw.size(1), draw.dtype()
    given = {"x": draw.floats(rows, C, dtype=dtype, strided=True), **norm_arguments(draw, C, dtype)}
    packed = draw.flag()
    marks = ("_up",) if packed or draw.flag() else ("_gate", "_up")
    for mark in marks:
        given |= map_arguments(draw, 2 * F if packed else F, C, dtype, mark, adapter=False)
    given |= map_arguments(draw, C, F, dtype, "_down", adapter=False)
    given["activation"] = draw.one(*ops.ACTIVATIONS)
    return given, marks, packed


BRANCH_NAMES = ("norm", "lora", "weight", "bias", "glu", "scaling", "mlp", "activation", "KeptRows", "projection")


def fed_forward(given: dict[str, Any], marks: tuple[str, ...], packed: bool) -> Tensor:
    z = normed(given["x"], given)
    wide = [mapped(z, given, mark) for mark in marks]
    if packed or len(wide) == 2:
        hidden = gated(*wide, *([None] if packed else []), given["activation"])
    else:
        hidden = glus.glu(wide[0], None, given["activation"])
    return mapped(hidden.to(z.dtype), given, "_down")


@drawing("ops.segment_mlp")
def segment_mlp(draw: Draw) -> Call:
    given, marks, packed = branch(draw)
    given |= {"residual": draw.maybe(lambda: given["x"] + 1), "segment": draw.one(2048, 1, 5)}

    def run(x: Tensor, residual: Any, segment: int, activation: str, **rest: Any) -> Tensor:
        up = [projection_of(rest, mark) for mark in marks]
        options = {"activation": activation, "packed": packed, "residual": residual, "segment": segment}
        return ops.segment_mlp(x, up, projection_of(rest, "_down"), norm_of(rest), **options)

    def exact(residual: Any, segment: int, **rest: Any) -> Tensor:
        y = fed_forward(rest, marks, packed)
        return y if residual is None else y + residual

    names = learned(given, "x", "residual", "norm_weight", "norm_bias") + of_map(given, *marks, "_down")
    return Call(run, given, exact, names, names=BRANCH_NAMES)


@drawing("ops.mlp_rows", "ops.mlp_skip")
def mlp_rows(draw: Draw) -> Call:
    given, marks, packed = branch(draw)
    given["rows"] = draw.chosen(draw.number(0, len(given["x"])), len(given["x"]))
    op, skip = (ops.mlp_skip, True) if draw.flag() else (ops.mlp_rows, False)

    def run(x: Tensor, rows: Tensor, activation: str, **rest: Any) -> Tensor:
        up = [projection_of(rest, mark) for mark in marks]
        return op(x, rows, up, projection_of(rest, "_down"), norm_of(rest), activation=activation, packed=packed)

    def exact(rows: Tensor, **rest: Any) -> Tensor:
        x, taken = rest["x"], torch.zeros(len(rest["x"]), dtype=torch.bool)
        taken[different(rows, x)] = True
        y = fed_forward(rest, marks, packed)
        return x + (y * taken[:, None] if skip else torch.where(taken[:, None], y, y.detach()))

    names = learned(given, "x", "norm_weight", "norm_bias") + of_map(given, *marks, "_down")
    return Call(run, given, exact, names, names=BRANCH_NAMES)


@drawing("ops.mlp_cols")
def mlp_cols(draw: Draw) -> Call:
    given, marks, packed = branch(draw)
    given |= {"residual": given["x"] + 1, "share": draw.one(0.5, 1.0, 0.01)}

    def run(x: Tensor, residual: Tensor, share: float, activation: str, **rest: Any) -> Tensor:
        up = [projection_of(rest, mark) for mark in marks]
        options: dict[str, Any] = {"activation": activation, "share": share, "packed": packed, "residual": residual}
        return ops.mlp_cols(x, up, projection_of(rest, "_down"), norm_of(rest), **options)

    def exact(residual: Tensor, share: float, **rest: Any) -> Tensor:
        return fed_forward(rest, marks, packed) + residual

    return Call(run, given, exact, (), names=(*BRANCH_NAMES, "residual"))
