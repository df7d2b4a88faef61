"""Linear maps with low-rank adapters: one, or a group that shares its input, with the norm before them in the op."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longspan.ops._define import define, op, require
from longspan.ops._dtypes import check_dtype
from longspan.ops._rows import as_rows, last_contiguous
from longspan.ops.norm import Norm

MAX_PROJECTIONS, MAX_RANK = 8, 256


@dataclass(frozen=True)
class Projection:
    """One linear map of a group: weight [N,C], bias [N], adapter lora_a [R,C] and lora_b [N,R], its scaling.

    residual [..., N] is added to what it gives. All but weight may be None; lora_a and lora_b go together.
    """

    weight: Tensor
    bias: Tensor | None = None
    lora_a: Tensor | None = None
    lora_b: Tensor | None = None
    scaling: float = 1.0
    residual: Tensor | None = None


def lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    lora_a: Tensor | None = None,
    lora_b: Tensor | None = None,
    scaling: float = 1.0,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
    *,
    residual: Tensor | None = None,
) -> Tensor:
    """y = x W^T + bias + scaling ((x . D) A^T) B^T + residual.

    x: [..., C] in float32, bfloat16, float64 on the CPU, float16 on CUDA. weight [N,C], bias [N] and residual [..., N]
    have its dtype; lora_a [R,C] and lora_b [N,R] have it or are float32. R is at most 256. Returns [..., N].

    D is the dropout mask: 0 with probability dropout_p, else 1 / (1 - dropout_p), a pure function of (seed, row,
    column) that is made again wherever it is needed and never stored. seed: int, int64 tensor of one element, or None
    to draw one from torch's generator.

    Differentiable, once, in x, weight, bias, lora_a, lora_b and residual; what does not require grad costs nothing. The
    adapter's full-width product and x . D never exist. Saved: s = (x . D) A^T, R numbers a row in float32 (float64),
    and x by reference where lora_a or weight needs it. Sums are in float32 or wider, y is rounded once. Deterministic,
    and no result depends on the number of threads.

    Raises ValueError naming what does not fit, and MissingBackendError when no kernel serves the device.
    Source: Hu et al. 2021, section 4.1; masks by Salmon et al. 2011 (Philox4x32-10).
    """
    one = Projection(weight, bias, lora_a, lora_b, scaling, residual)
    return _run("lora_linear", x, None, [one], dropout_p, seed)[0]


def norm_lora_linear(
    x: Tensor,
    projections: Sequence[Projection],
    norm: Norm | None = None,
    *,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Each projection of `lora_linear` applied to z = norm(x), or to x itself without a norm; one y [..., N_i] each.

    What a layer does with q, k and v, and with gate and up: x is read once for all adapters, and the normed rows exist
    for a panel of rows at a time only; the gradient makes them again. Saved: x by reference (always, with a norm), one
    or two numbers a row, and s. Dropout draws one mask a projection: seed is an int64 tensor with one element each, or
    None.

    Also differentiable in the norm's weight and bias. Otherwise, errors too, as `lora_linear`; at most 8 projections.
    Source: Hu et al. 2021; Zhang and Sennrich 2019; Ba, Kiros and Hinton 2016.
    """
    return _run("norm_lora_linear", x, norm, list(projections), dropout_p, seed)


def _run(
    name: str, x: Tensor, norm: Norm | None, group: list[Projection], dropout_p: float, seed: int | Tensor | None
) -> tuple[Tensor, ...]:
    _check(name, x, norm, group, dropout_p, seed)
    require("lora_linear_fwd", x)
    seeds = _seeds(seed, len(group), x.device) if dropout_p > 0 else None
    norm, none = norm or Norm(kind="none"), x.new_empty(0)
    ys, _, _, _ = op("lora_linear_fwd")(
        as_rows(x),
        None if norm.weight is None else norm.weight.contiguous(),
        None if norm.bias is None else norm.bias.contiguous(),
        norm.kind,
        float(norm.eps),
        float(norm.weight_offset),
        [last_contiguous(p.weight) for p in group],
        [none if p.bias is None else p.bias.contiguous() for p in group],
        [none if p.lora_a is None else last_contiguous(p.lora_a) for p in group],
        [none if p.lora_b is None else last_contiguous(p.lora_b) for p in group],
        [float(p.scaling) for p in group],
        [none if p.residual is None else as_rows(p.residual) for p in group],
        float(dropout_p),
        seeds,
    )
    # Rows come back as they are: a view of them could not be written in place without a copy of its gradient.
    return tuple(ys) if x.dim() == 2 else tuple(y.reshape(*x.shape[:-1], y.shape[-1]) for y in ys)


def _seeds(seed: int | Tensor | None, count: int, device: torch.device) -> Tensor:
    if seed is None:
        return torch.randint(torch.iinfo(torch.int64).max, (count,), device=device)
    if isinstance(seed, Tensor):
        return seed.reshape(count)
    return torch.tensor([seed], dtype=torch.int64, device=device)


def _check(
    name: str, x: Tensor, norm: Norm | None, group: list[Projection], dropout_p: float, seed: int | Tensor | None
) -> None:
    if x.dim() < 1 or x.shape[-1] < 1:
        raise ValueError(f"{name}: x has shape {tuple(x.shape)}; it must be [..., C] with C at least 1")
    check_dtype(name, "x", x, half=True)
    if not 1 <= len(group) <= MAX_PROJECTIONS:
        raise ValueError(f"{name}: {len(group)} projections; allowed: 1 to {MAX_PROJECTIONS}")
    if not 0 <= dropout_p < 1:
        raise ValueError(f"{name}: dropout_p is {dropout_p}; it must be at least 0 and below 1")
    if isinstance(seed, Tensor):
        if (seed.dtype, seed.numel(), seed.device) != (torch.int64, len(group), x.device):
            raise ValueError(
                f"{name}: seed is {seed.dtype} {tuple(seed.shape)} on {seed.device}; it must be int64 with "
                f"{len(group)} elements on {x.device}"
            )
    elif seed is not None and (len(group) > 1 or not isinstance(seed, int) or not -(2**63) <= seed < 2**63):
        allowed = "an int of 64 bits, an int64 tensor" if len(group) == 1 else "an int64 tensor"
        raise ValueError(f"{name}: seed is {seed!r}; it must be {allowed} with {len(group)} elements, or None")
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    if norm is not None:
        if norm.kind not in ("rms", "layer"):
            raise ValueError(f"{name}: norm.kind is {norm.kind!r}; allowed: rms, layer")
        _check_norm(name, x, norm, wide)
    for i, projection in enumerate(group):
        label = "" if len(group) == 1 else f"projection {i}: "
        _check_projection(f"{name}: {label}", x, projection, wide)


def _check_norm(name: str, x: Tensor, norm: Norm, wide: torch.dtype) -> None:
    for label, vector in (("norm.weight", norm.weight), ("norm.bias", norm.bias)):
        if vector is not None and (vector.shape != x.shape[-1:] or vector.device != x.device):
            raise ValueError(
                f"{name}: {label} has shape {tuple(vector.shape)} on {vector.device}; it must be ({x.shape[-1]},) "
                f"on {x.device}"
            )
        if vector is not None and vector.dtype not in (x.dtype, wide):
            allowed = ", ".join(dict.fromkeys((str(x.dtype), str(wide))))
            raise ValueError(f"{name}: {label} is {vector.dtype}; allowed: {allowed}")
    if norm.weight is not None and norm.bias is not None and norm.weight.dtype != norm.bias.dtype:
        raise ValueError(
            f"{name}: norm.weight is {norm.weight.dtype} and norm.bias is {norm.bias.dtype}; they must agree"
        )
    if not 0 <= norm.eps < math.inf:
        raise ValueError(f"{name}: norm.eps is {norm.eps}; it must be finite and not negative")
    if not -math.inf < norm.weight_offset < math.inf:
        raise ValueError(f"{name}: norm.weight_offset is {norm.weight_offset}; it must be finite")


def _check_projection(where: str, x: Tensor, p: Projection, wide: torch.dtype) -> None:
    columns = x.shape[-1]
    if p.weight.dim() != 2 or p.weight.shape[1] != columns:
        raise ValueError(f"{where}weight has shape {tuple(p.weight.shape)}; it must be [N,{columns}]")
    rows = p.weight.shape[0]
    if (p.lora_a is None) != (p.lora_b is None):
        raise ValueError(f"{where}lora_a and lora_b go together; give both or none")
    wanted: list[tuple[str, Tensor | None, tuple[int, ...]]] = [
        ("weight", p.weight, (rows, columns)),
        ("bias", p.bias, (rows,)),
        ("residual", p.residual, (*x.shape[:-1], rows)),
    ]
    for label, tensor, shape in wanted:
        if tensor is not None and (tensor.shape, tensor.dtype, tensor.device) != (shape, x.dtype, x.device):
            raise ValueError(
                f"{where}{label} is {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}; it must be {x.dtype} "
                f"{tuple(shape)} on {x.device}"
            )
    if p.lora_a is None or p.lora_b is None:
        return
    rank = p.lora_a.shape[0] if p.lora_a.dim() == 2 else -1
    if not 1 <= rank <= MAX_RANK:
        raise ValueError(
            f"{where}lora_a has shape {tuple(p.lora_a.shape)}; it must be [R,{columns}], R 1 to {MAX_RANK}"
        )
    if p.lora_a.shape != (rank, columns) or p.lora_b.shape != (rows, rank):
        raise ValueError(
            f"{where}lora_a has shape {tuple(p.lora_a.shape)} and lora_b {tuple(p.lora_b.shape)}; they must be "
            f"({rank}, {columns}) and ({rows}, {rank})"
        )
    for label, tensor in (("lora_a", p.lora_a), ("lora_b", p.lora_b)):
        if tensor.dtype not in (x.dtype, wide) or tensor.device != x.device or tensor.dtype != p.lora_a.dtype:
            allowed = " or ".join(dict.fromkeys((str(x.dtype), str(wide))))
            raise ValueError(
                f"{where}{label} is {tensor.dtype} on {tensor.device}; lora_a and lora_b must be of one dtype, "
                f"{allowed}, on {x.device}"
            )


def _fwd_fake(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm: str,
    eps: float,
    weight_offset: float,
    weights: list[Tensor],
    biases: list[Tensor],
    lora_a: list[Tensor],
    lora_b: list[Tensor],
    scalings: list[float],
    residuals: list[Tensor],
    dropout_p: float,
    seeds: Tensor | None,
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    statistics = torch.float64 if x.dtype == torch.float64 else torch.float32
    rows = x.shape[0]
    return (
        [x.new_empty((rows, weight.shape[0])) for weight in weights],
        x.new_empty((rows, sum(a.shape[0] for a in lora_a)), dtype=statistics),
        x.new_empty((0 if norm == "none" else rows,), dtype=statistics),
        x.new_empty((rows if norm == "layer" else 0,), dtype=statistics),
    )


def _bwd_fake(
    dys: list[Tensor | None],
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm: str,
    eps: float,
    weight_offset: float,
    weights: list[Tensor],
    biases: list[Tensor],
    lora_a: list[Tensor],
    lora_b: list[Tensor],
    scalings: list[float],
    dropout_p: float,
    seeds: Tensor | None,
    s: Tensor,
    rstd: Tensor,
    mean: Tensor,
    need_dx: bool,
    need_dnorm_weight: bool,
    need_dnorm_bias: bool,
    need_dweights: list[int],
    need_dbiases: list[int],
    need_dlora_a: list[int],
    need_dlora_b: list[int],
) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    def like(needed: int, tensor: Tensor | None) -> Tensor:
        return x.new_empty((0,)) if tensor is None or not needed else tensor.new_empty(tensor.shape)

    def each(needed: list[int], tensors: list[Tensor]) -> list[Tensor]:
        return [like(*pair) for pair in zip(needed, tensors, strict=True)]

    return (
        like(need_dx, x),
        like(need_dnorm_weight, norm_weight),
        like(need_dnorm_bias, norm_bias),
        each(need_dweights, weights),
        each(need_dbiases, biases),
        each(need_dlora_a, lora_a),
        each(need_dlora_b, lora_b),
    )


_GROUP = (
    "Tensor? norm_weight, Tensor? norm_bias, str norm, float eps, float weight_offset, Tensor[] weights, "
    "Tensor[] biases, Tensor[] lora_a, Tensor[] lora_b, float[] scalings, "
)
# In a list, no tensor is one of shape [0]: register_autograd takes no lists with None. x [T,C]; y [T,N_i] each;
# s [T, sum R_i] in statistics; rstd [T] and mean [T], empty where the norm has none.
define(
    "lora_linear_fwd",
    f"(Tensor x, {_GROUP}Tensor[] residuals, float dropout_p, Tensor? seeds) -> "
    "(Tensor[] y, Tensor s, Tensor rstd, Tensor mean)",
    _fwd_fake,
)
# dy None is zero. What is not needed is empty.
define(
    "lora_linear_bwd",
    f"(Tensor?[] dys, Tensor x, {_GROUP}float dropout_p, Tensor? seeds, Tensor s, Tensor rstd, Tensor mean, "
    "bool need_dx, bool need_dnorm_weight, bool need_dnorm_bias, int[] need_dweights, int[] need_dbiases, "
    "int[] need_dlora_a, int[] need_dlora_b) -> (Tensor dx, Tensor dnorm_weight, Tensor dnorm_bias, "
    "Tensor[] dweights, Tensor[] dbiases, Tensor[] dlora_a, Tensor[] dlora_b)",
    _bwd_fake,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[list[Tensor], Tensor, Tensor, Tensor]) -> None:
    x, norm_weight, norm_bias, norm, eps, weight_offset, weights, biases, lora_a, lora_b, scalings, _, p, seeds = inputs
    _, s, rstd, mean = output
    ctx.mark_non_differentiable(s, rstd, mean)
    ctx.set_materialize_grads(False)
    # A frozen map without adapter needs its input for nothing; autograd then keeps what it is given alive for nothing.
    kept = x if any(t.requires_grad for t in (*weights, *lora_a)) or norm != "none" else x.new_empty((0, x.shape[1]))
    ctx.input = (x.shape, kept is x)
    tensors = [kept, norm_weight, norm_bias, seeds, s, rstd, mean, *weights, *biases, *lora_a, *lora_b]
    ctx.save_for_backward(*tensors)
    ctx.constants = (norm, eps, weight_offset, scalings, p)


def _backward(ctx: Any, dys: list[Tensor | None], *_: Tensor | None) -> tuple[Any, ...]:
    if torch.is_grad_enabled():
        raise RuntimeError("lora_linear is differentiable once; its gradient has no graph (create_graph=True)")
    x, norm_weight, norm_bias, seeds, s, rstd, mean, *rest = ctx.saved_tensors
    norm, eps, weight_offset, scalings, p = ctx.constants
    n = len(rest) // 4
    weights, biases, lora_a, lora_b = rest[:n], rest[n : 2 * n], rest[2 * n : 3 * n], rest[3 * n :]
    shape, kept = ctx.input
    need = ctx.needs_input_grad

    needed = [
        [int(flag and tensor.numel() > 0) for flag, tensor in zip(need[i], tensors, strict=True)]
        for i, tensors in ((6, weights), (7, biases), (8, lora_a), (9, lora_b))
    ]
    dx, dnorm_weight, dnorm_bias, *lists = op("lora_linear_bwd")(
        [None if dy is None else as_rows(dy) for dy in dys],
        x if kept else x.new_empty((1, shape[1])).expand(shape),
        norm_weight,
        norm_bias,
        norm,
        eps,
        weight_offset,
        weights,
        biases,
        lora_a,
        lora_b,
        scalings,
        p,
        seeds,
        s,
        rstd,
        mean,
        need[0],
        need[1] and norm_weight is not None,
        need[2] and norm_bias is not None,
        *needed,
    )
    gradients = [
        [g if flag else None for g, flag in zip(*pair, strict=True)] for pair in zip(lists, needed, strict=True)
    ]
    dresiduals = [dy if flag else None for dy, flag in zip(dys, need[11], strict=True)]
    return (
        dx if need[0] else None,
        dnorm_weight if need[1] else None,
        dnorm_bias if need[2] else None,
        None,
        None,
        None,
        *gradients,
        None,
        dresiduals,
        None,
        None,
    )


torch.library.register_autograd("longspan::lora_linear_fwd", _backward, setup_context=_save)
