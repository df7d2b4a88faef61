"""The loss of a language-model head without its logits: at most one segment of them exists at a time."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from longspan.ops._define import define, op, require
from longspan.ops._dtypes import check_dtype
from longspan.ops._rows import as_rows

REDUCTIONS = ("mean", "sum", "none")


def segment_linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    token_weights: Tensor | None = None,
    segment: int = 2048,
    ignore_index: int = -100,
    reduction: str = "mean",
    bias: Tensor | None = None,
    logit_softcap: float | None = None,
    logit_scale: float = 1.0,
    num_items: int | float | Tensor | None = None,
) -> Tensor:
    """Cross-entropy of softmax(z), z = cap(logit_scale * (hidden weight^T + bias)), cap(x) = c tanh(x / c), without z.

        loss[t] = token_weights[t] * (log sum_v exp z[t,v] - z[t, labels[t]]),  0 where labels[t] is ignore_index

    hidden: [..., C]; weight: [V, C]; bias: [V]; all float32, bfloat16 or, on the CPU, float64. labels: [...],
    int64 or int32, already shifted: labels[i] is the target of hidden[i]; 0 <= label < V or ignore_index.
    token_weights: [...] of either sign, constant (not differentiated); None is 1. logit_softcap: c; None is no cap.
    segment: the most rows of logits that exist at a time. Rows with an ignored label or weight 0 cost nothing.

    reduction: "sum"; "mean", the sum divided by num_items, or without it by the number of labels that are not ignored
    (not by the sum of the weights, which may be 0 or negative); "none", loss [...]. num_items counts the items of all
    micro-batches and ranks that make one step, so that their losses add up to the exact mean. With nothing to count
    (T = 0, all labels ignored, or a num_items tensor that holds 0) sum and mean are 0 with zero gradients, not nan.

    Returns the loss in float32 (float64 for float64). Differentiable, once, in hidden, weight and bias; gradients have
    the dtype of their inputs, and weight's is summed in float32 or wider. For "sum" and "mean" the gradients are
    computed here and only scaled in backward; for "none" backward computes the segments again. Under autocast hidden,
    weight and bias are cast as `torch.nn.functional.linear` casts its inputs. Transient memory: segment * V * 4 bytes
    of logits (8 for float64), and with dweight V * C * 4 bytes for bfloat16. Deterministic; the result does not depend
    on the number of threads, and on `segment` only by rounding.

    On CUDA nothing waits for the device: all rows are multiplied, a label out of range makes its loss and gradient nan,
    and for bfloat16 the gradients of the logits are rounded to bfloat16 before they are multiplied.

    Raises ValueError naming what does not fit (a label out of range with its row and V), and MissingBackendError when
    no kernel serves the device.
    Source: Liger Kernel (Hsu et al. 2024, section 3.2, fused linear cross-entropy); Gemma 2 (section 2), the soft-cap.
    """
    hidden, weight, bias = _autocast(hidden, weight, bias)
    _check_tensors(hidden, weight, bias, labels, token_weights)
    _check_options(segment, ignore_index, reduction, logit_softcap, logit_scale, num_items)
    targets = labels.reshape(-1).to(torch.int64).contiguous()
    _check_labels(targets, weight.shape[0], ignore_index)
    require("linear_cross_entropy", hidden)

    statistics = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    row_weights = None if token_weights is None else token_weights.reshape(-1).to(statistics)
    if reduction == "mean":
        share = 1.0 / _divisor(targets, ignore_index, num_items, statistics)
        row_weights = share.expand(targets.shape) if row_weights is None else row_weights * share
    per_row = reduction == "none"
    now = torch.is_grad_enabled() and not per_row
    loss = op("linear_cross_entropy")(
        as_rows(hidden),
        as_rows(weight),
        None if bias is None else bias.contiguous(),
        targets,
        None if row_weights is None else row_weights.contiguous(),
        segment,
        ignore_index,
        float(logit_scale),
        float(logit_softcap or 0.0),
        per_row,
        now and hidden.requires_grad,
        now and weight.requires_grad,
        now and bias is not None and bias.requires_grad,
    )[0]
    return loss.reshape(labels.shape) if per_row else loss


def _autocast(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """What autocast does to the inputs of `linear`; float64 stays."""
    device = hidden.device.type
    if not torch.is_autocast_enabled(device) or torch.float64 in (hidden.dtype, weight.dtype):
        return hidden, weight, bias
    dtype = torch.get_autocast_dtype(device)
    return hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _divisor(labels: Tensor, ignore_index: int, num_items: int | float | Tensor | None, dtype: torch.dtype) -> Tensor:
    if num_items is None:
        return (labels != ignore_index).sum().clamp(min=1).to(dtype)
    items = torch.as_tensor(num_items, dtype=dtype, device=labels.device).reshape(())
    return torch.where(items == 0, torch.ones_like(items), items)


def _check_tensors(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, token_weights: Tensor | None
) -> None:
    name = "segment_linear_cross_entropy"
    if hidden.dim() < 1 or weight.dim() != 2 or hidden.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"{name}: hidden has shape {tuple(hidden.shape)} and weight {tuple(weight.shape)}; "
            "they must be [..., C] and [V, C]"
        )
    for label, x in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        if x is None:
            continue
        check_dtype(name, label, x, half=False)
        if x.dtype != hidden.dtype or x.device != hidden.device:
            raise ValueError(
                f"{name}: {label} is {x.dtype} on {x.device} but hidden is {hidden.dtype} on {hidden.device}; "
                "they must agree"
            )
    if weight.shape[0] < 1:
        raise ValueError(f"{name}: weight has shape {tuple(weight.shape)}; V must be at least 1")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{name}: bias has shape {tuple(bias.shape)}; it must be ({weight.shape[0]},)")
    if labels.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{name}: labels is {labels.dtype}; allowed: int64, int32")
    if labels.shape != hidden.shape[:-1] or labels.device != hidden.device:
        raise ValueError(
            f"{name}: labels has shape {tuple(labels.shape)} on {labels.device}; "
            f"one label for each row of hidden needs {tuple(hidden.shape[:-1])} on {hidden.device}"
        )
    if token_weights is None:
        return
    if not token_weights.dtype.is_floating_point or token_weights.shape != labels.shape:
        raise ValueError(
            f"{name}: token_weights is {token_weights.dtype} {tuple(token_weights.shape)}; "
            f"it must be floating point with the shape of labels, {tuple(labels.shape)}"
        )
    if token_weights.device != hidden.device:
        raise ValueError(f"{name}: token_weights is on {token_weights.device} but hidden is on {hidden.device}")
    if token_weights.requires_grad:
        raise ValueError(f"{name}: token_weights requires grad but is a constant here; call token_weights.detach()")


def _check_options(
    segment: int,
    ignore_index: int,
    reduction: str,
    logit_softcap: float | None,
    logit_scale: float,
    num_items: int | float | Tensor | None,
) -> None:
    name = "segment_linear_cross_entropy"
    if not -(2**63) <= ignore_index < 2**63:
        raise ValueError(f"{name}: ignore_index is {ignore_index}; it must have 64 bits, as labels")
    if segment < 1:
        raise ValueError(f"{name}: segment is {segment}; it must be at least 1")
    if reduction not in REDUCTIONS:
        raise ValueError(f"{name}: reduction is {reduction!r}; allowed: {', '.join(REDUCTIONS)}")
    if logit_softcap is not None and not 0 < logit_softcap < math.inf:
        raise ValueError(f"{name}: logit_softcap is {logit_softcap}; it must be positive, or None for no cap")
    if not -math.inf < logit_scale < math.inf:
        raise ValueError(f"{name}: logit_scale is {logit_scale}; it must be finite")
    if num_items is None:
        return
    if reduction != "mean":
        raise ValueError(f"{name}: num_items divides the mean, but reduction is {reduction!r}; leave one of them out")
    if isinstance(num_items, Tensor):
        if num_items.numel() != 1:
            raise ValueError(f"{name}: num_items has shape {tuple(num_items.shape)}; it must hold one number")
    elif not 0 < num_items < math.inf:
        raise ValueError(f"{name}: num_items is {num_items}; it must be positive")


def _check_labels(labels: Tensor, vocabulary: int, ignore_index: int) -> None:
    """Names the first label out of range. Values are only read where that is free; the kernel checks again."""
    if torch.compiler.is_compiling() or type(labels) is not Tensor or labels.device.type != "cpu":
        return
    wrong = (labels != ignore_index) & ((labels < 0) | (labels >= vocabulary))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"segment_linear_cross_entropy: label {int(labels[row])} at row {row} is out of range; "
            f"allowed: 0 to {vocabulary - 1} (V is {vocabulary}), or ignore_index {ignore_index}"
        )


def _fwd_fake(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    row_weights: Tensor | None,
    segment: int,
    ignore_index: int,
    logit_scale: float,
    logit_softcap: float,
    per_row: bool,
    need_dhidden: bool,
    need_dweight: bool,
    need_dbias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    statistics = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    return (
        hidden.new_empty(hidden.shape[:1] if per_row else (), dtype=statistics),
        hidden.new_empty(hidden.shape if need_dhidden else (0,)),
        hidden.new_empty(weight.shape if need_dweight else (0,)),
        hidden.new_empty(weight.shape[:1] if need_dbias else (0,)),
    )


# loss is sum_t losses[t], or losses [T] when per_row; the gradients are those of the sum, empty where not needed.
define(
    "linear_cross_entropy",
    "(Tensor hidden, Tensor weight, Tensor? bias, Tensor labels, Tensor? row_weights, SymInt segment, "
    "int ignore_index, float logit_scale, float logit_softcap, bool per_row, bool need_dhidden, bool need_dweight, "
    "bool need_dbias) -> (Tensor loss, Tensor dhidden, Tensor dweight, Tensor dbias)",
    _fwd_fake,
)
_INPUTS = 13


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    hidden, weight, bias, labels, row_weights, *options, per_row, need_dhidden, need_dweight, need_dbias = inputs
    needs, gradients = ctx.needs_input_grad[:3], output[1:]
    computed = (need_dhidden, need_dweight, need_dbias)
    ctx.mark_non_differentiable(*gradients)
    ctx.set_materialize_grads(False)
    ctx.ready = not per_row and all(c or not n for c, n in zip(computed, needs, strict=True))
    if ctx.ready:
        ctx.save_for_backward(*(g if n else None for g, n in zip(gradients, needs, strict=True)))
    else:
        ctx.save_for_backward(hidden, weight, bias, labels, row_weights)
        ctx.options = options


def _backward(ctx: Any, dloss: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "segment_linear_cross_entropy is differentiable once; its gradient has no graph (create_graph=True)"
        )
    if dloss is None:
        return (None,) * _INPUTS
    needs = ctx.needs_input_grad[:3]
    if ctx.ready:
        gradients = [None if g is None else _scaled(g, dloss) for g in ctx.saved_tensors]
    else:
        # A gradient per row reaches dweight inside the sum over rows: compute it again with those weights.
        hidden, weight, bias, labels, row_weights = ctx.saved_tensors
        weights = dloss.expand(labels.shape) if row_weights is None else row_weights * dloss
        out = op("linear_cross_entropy")(
            hidden, weight, bias, labels, weights.contiguous(), *ctx.options, False, *needs
        )
        gradients = [g if n else None for g, n in zip(out[1:], needs, strict=True)]
    return (*gradients, *(None,) * (_INPUTS - 3))


def _scaled(gradient: Tensor, by: Tensor) -> Tensor:
    """gradient * by; not copied for the usual factor 1, where that can be read for free."""
    if type(by) is Tensor and by.device.type == "cpu" and by.item() == 1.0:
        return gradient
    return gradient * by.to(gradient.dtype)


torch.library.register_autograd("longspan::linear_cross_entropy", _backward, setup_context=_save)
