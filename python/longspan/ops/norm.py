"""Row norms with a fused residual add. They keep their input, which is alive anyway, and one or two numbers a row."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longspan.ops._define import define, op, require
from longspan.ops._dtypes import check_dtype
from longspan.ops._rows import as_rows


@dataclass(frozen=True)
class Norm:
    """The row norm that a linear map's input goes through: kind "rms" or "layer"; see `rms_norm` and `layer_norm`."""

    weight: Tensor | None = None
    bias: Tensor | None = None
    kind: str = "rms"
    eps: float = 1e-6
    weight_offset: float = 0.0


def apply_norm(norm: Norm | None, x: Tensor) -> Tensor:
    """The norm of x [..., C], all of its fields as in `norm_lora_linear`; x itself for None.

    Errors as `rms_norm` and `layer_norm`.
    """
    if norm is None:
        return x
    if norm.kind not in ("rms", "layer"):
        raise ValueError(f"apply_norm: norm.kind is {norm.kind!r}; allowed: rms, layer")
    centered = norm.kind == "layer"
    y = _norm("apply_norm", x, norm.weight, norm.bias, None, centered, norm.eps, norm.weight_offset)
    assert isinstance(y, Tensor)
    return y


def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    weight_offset: float = 0.0,
) -> Tensor | tuple[Tensor, Tensor]:
    """y = s / sqrt(mean_C(s^2) + eps) * (weight_offset + weight), s = x + residual.

    x, residual: [..., C], float32, bfloat16, float64 on the CPU, float16 on CUDA, of one shape and dtype.
    weight: [C] in the dtype of x or in float32; None is 1. weight_offset: 1 for models that store weight - 1 (Gemma).

    Returns y, and with a residual (y, s): s is rounded once and is what y is the norm of. Both have the shape and dtype
    of x, also where weight is float32. Sums are in float32 or wider and y is rounded once.

    Differentiable, once, in x, residual and weight; the gradient that reaches s is added in the same pass. Saved: s (or
    x) by reference and 4 bytes a row. Deterministic; no result depends on the number of threads. On CUDA one row of x
    must fit into shared memory (227 KiB).

    Raises ValueError naming what does not fit, and MissingBackendError when no kernel serves the device.
    Source: Zhang and Sennrich 2019, section 3.
    """
    return _norm("rms_norm", x, weight, None, residual, False, eps, weight_offset)


def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor | tuple[Tensor, Tensor]:
    """y = (s - mean_C(s)) / sqrt(var_C(s) + eps) * weight + bias, s = x + residual, var without Bessel's correction.

    As `rms_norm`, errors too, with bias [C] in the dtype of weight; 8 bytes a row are saved. The variance is summed
    around the mean, in a second pass over the row. Source: Ba, Kiros and Hinton 2016, section 3.
    """
    return _norm("layer_norm", x, weight, bias, residual, True, eps, 0.0)


def _norm(
    name: str,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    centered: bool,
    eps: float,
    weight_offset: float,
) -> Tensor | tuple[Tensor, Tensor]:
    _check(name, x, weight, bias, residual, eps, weight_offset)
    require("norm_fwd", x)
    y, total, _, _ = op("norm_fwd")(
        as_rows(x),
        None if residual is None else as_rows(residual),
        None if weight is None else weight.contiguous(),
        None if bias is None else bias.contiguous(),
        centered,
        float(eps),
        float(weight_offset),
    )
    return y.reshape(x.shape) if residual is None else (y.reshape(x.shape), total.reshape(x.shape))


def _check(
    name: str,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    weight_offset: float,
) -> None:
    if x.dim() < 1 or x.shape[-1] < 1:
        raise ValueError(f"{name}: x has shape {tuple(x.shape)}; it must be [..., C] with C at least 1")
    check_dtype(name, "x", x, half=True)
    if residual is not None and (residual.shape, residual.dtype, residual.device) != (x.shape, x.dtype, x.device):
        raise ValueError(
            f"{name}: residual is {residual.dtype} {tuple(residual.shape)} on {residual.device}; it must be "
            f"{x.dtype} {tuple(x.shape)} on {x.device}, as x is"
        )
    statistics = torch.float64 if x.dtype == torch.float64 else torch.float32
    for label, vector in (("weight", weight), ("bias", bias)):
        if vector is None:
            continue
        if vector.shape != x.shape[-1:] or vector.device != x.device:
            raise ValueError(
                f"{name}: {label} has shape {tuple(vector.shape)} on {vector.device}; it must be ({x.shape[-1]},) "
                f"on {x.device}"
            )
        if vector.dtype not in (x.dtype, statistics):
            allowed = " or ".join(dict.fromkeys((str(x.dtype), str(statistics))))
            raise ValueError(f"{name}: {label} is {vector.dtype}; for x in {x.dtype} it must be {allowed}")
    if weight is not None and bias is not None and weight.dtype != bias.dtype:
        raise ValueError(f"{name}: weight is {weight.dtype} and bias is {bias.dtype}; they must have one dtype")
    if not 0 <= eps < math.inf:
        raise ValueError(f"{name}: eps is {eps}; it must be finite and not negative")
    if not -math.inf < weight_offset < math.inf:
        raise ValueError(f"{name}: weight_offset is {weight_offset}; it must be finite")


def _statistics(x: Tensor, wanted: bool = True) -> Tensor:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(x.shape[:1] if wanted else (0,), dtype=dtype)


def _fwd_fake(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    centered: bool,
    eps: float,
    weight_offset: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total = x.new_empty(x.shape if residual is not None else (0,))
    return x.new_empty(x.shape), total, _statistics(x), _statistics(x, centered)


def _bwd_fake(
    dy: Tensor,
    dsum: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    rstd: Tensor,
    mean: Tensor,
    centered: bool,
    weight_offset: float,
    need_dweight: bool,
    need_dbias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    def vector(needed: bool, like: Tensor | None) -> Tensor:
        return like.new_empty(x.shape[1:]) if needed and like is not None else x.new_empty((0,))

    return x.new_empty(x.shape), vector(need_dweight, weight), vector(need_dbias, bias)


# y [T,C]; sum = x + residual [T,C], empty without a residual; rstd [T] and mean [T] (empty unless centered).
define(
    "norm_fwd",
    "(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, bool centered, float eps, float weight_offset) -> "
    "(Tensor y, Tensor sum, Tensor rstd, Tensor mean)",
    _fwd_fake,
)
# x is what was normalised. dx is the gradient of x and of the residual; dweight and dbias are empty where not needed.
define(
    "norm_bwd",
    "(Tensor dy, Tensor? dsum, Tensor x, Tensor? weight, Tensor? bias, Tensor rstd, Tensor mean, bool centered, "
    "float weight_offset, bool need_dweight, bool need_dbias) -> (Tensor dx, Tensor dweight, Tensor dbias)",
    _bwd_fake,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    x, residual, weight, bias, centered, _, weight_offset = inputs
    _, total, rstd, mean = output
    ctx.mark_non_differentiable(rstd, mean, *([] if residual is not None else [total]))
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x if residual is None else total, weight, bias, rstd, mean)
    ctx.centered, ctx.weight_offset, ctx.residual = centered, weight_offset, residual is not None


def _backward(ctx: Any, dy: Tensor | None, dsum: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():
        raise RuntimeError("row norms are differentiable once; their gradient has no graph (create_graph=True)")
    x, weight, bias, rstd, mean = ctx.saved_tensors
    if dy is None:
        return dsum, dsum if ctx.residual else None, *(None,) * 5
    dx, dweight, dbias = op("norm_bwd")(
        as_rows(dy),
        None if dsum is None else as_rows(dsum),
        x,
        weight,
        bias,
        rstd,
        mean,
        ctx.centered,
        ctx.weight_offset,
        ctx.needs_input_grad[2],
        ctx.needs_input_grad[3],
    )
    return (
        dx if ctx.needs_input_grad[0] else None,
        dx if ctx.needs_input_grad[1] else None,
        dweight if ctx.needs_input_grad[2] else None,
        dbias if ctx.needs_input_grad[3] else None,
        *(None,) * 3,
    )


torch.library.register_autograd("longspan::norm_fwd", _backward, setup_context=_save)
