"""Gated linear units and plain activations that keep their inputs and nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longspan.ops._define import define, op, require
from longspan.ops._dtypes import check_dtype
from longspan.ops._rows import as_rows

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2")
"""Names of the activations of `glu` and `activation`."""


def glu(gate: Tensor, up: Tensor | None = None, *, activation: str) -> Tensor:
    """y = activation(gate) * up.

    gate, up: [..., F] of one shape and dtype: float32, bfloat16, float64 on the CPU, float16 on CUDA; rows may be
    strided (slices of one tensor). Without up, gate is [..., 2 F] and holds gate and up one after the other, as one
    projection leaves them; its gradient comes in the same form.

    activation: "silu" (x sigmoid(x)), "gelu" (x Phi(x), exact), "gelu_tanh" (its approximation by tanh), "relu",
    "relu2" (max(x, 0)^2). Arithmetic is in float32 or wider, rounded once. Differentiable, once. Saved: gate and up by
    reference, nothing else. Deterministic.

    Raises ValueError naming what does not fit, and MissingBackendError when no kernel serves the device.
    Source: Shazeer 2020, section 2; Hendrycks and Gimpel 2016 (GELU); So et al. 2021 (squared ReLU).
    """
    packed = up is None
    _check("glu", gate, up, activation)
    if packed and gate.shape[-1] % 2:
        raise ValueError(f"glu: gate has shape {tuple(gate.shape)}; without up its last dimension must be even")
    y = _run(gate, up, activation, packed)
    return y.reshape(*gate.shape[:-1], y.shape[-1])


def swiglu(gate: Tensor, up: Tensor | None = None) -> Tensor:
    """silu(gate) * up; see `glu`. Source: Shazeer 2020, equation 6."""
    return glu(gate, up, activation="silu")


def geglu(gate: Tensor, up: Tensor | None = None, *, approximate: str = "none") -> Tensor:
    """gelu(gate) * up; approximate is "none" or "tanh", as in `torch.nn.functional.gelu`. See `glu`.

    Raises ValueError for another approximation.
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f"geglu: approximate is {approximate!r}; allowed: none, tanh")
    return glu(gate, up, activation="gelu" if approximate == "none" else "gelu_tanh")


def activation(x: Tensor, name: str) -> Tensor:
    """The activation `name` of `glu` alone: x [..., F] to [..., F]. Saved: x by reference. Errors as `glu`."""
    _check("activation", x, None, name)
    return _run(x, None, name, False).reshape(x.shape)


def _run(gate: Tensor, up: Tensor | None, name: str, packed: bool) -> Tensor:
    require("glu_fwd", gate)
    y: Tensor = op("glu_fwd")(as_rows(gate), None if up is None else as_rows(up), name, packed)
    return y


def _check(op_name: str, gate: Tensor, up: Tensor | None, name: str) -> None:
    if name not in ACTIVATIONS:
        raise ValueError(f"{op_name}: activation is {name!r}; allowed: {', '.join(ACTIVATIONS)}")
    if gate.dim() < 1:
        raise ValueError(f"{op_name}: the input has no dimensions; it must be [..., F]")
    check_dtype(op_name, "the input", gate, half=True)
    if up is not None and (up.shape, up.dtype, up.device) != (gate.shape, gate.dtype, gate.device):
        raise ValueError(
            f"{op_name}: up is {up.dtype} {tuple(up.shape)} on {up.device}; it must be {gate.dtype} "
            f"{tuple(gate.shape)} on {gate.device}, as gate is"
        )


def _fwd_fake(gate: Tensor, up: Tensor | None, activation: str, packed: bool) -> Tensor:
    return gate.new_empty((gate.shape[0], gate.shape[1] // 2 if packed else gate.shape[1]))


def _bwd_fake(dy: Tensor, gate: Tensor, up: Tensor | None, activation: str, packed: bool) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), gate.new_empty(gate.shape if up is not None else (0,))


# y [T,F]; packed: gate is [T, 2 F] and holds both, dgate likewise. dup is empty without up.
define("glu_fwd", "(Tensor gate, Tensor? up, str activation, bool packed) -> Tensor", _fwd_fake)
define(
    "glu_bwd",
    "(Tensor dy, Tensor gate, Tensor? up, str activation, bool packed) -> (Tensor dgate, Tensor dup)",
    _bwd_fake,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gate, up, ctx.activation, ctx.packed = inputs
    ctx.save_for_backward(gate, up)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():
        raise RuntimeError("glu is differentiable once; its gradient has no graph (create_graph=True)")
    gate, up = ctx.saved_tensors
    dgate, dup = op("glu_bwd")(as_rows(dy), gate, up, ctx.activation, ctx.packed)
    return dgate, None if up is None else dup, None, None


torch.library.register_autograd("longspan::glu_fwd", _backward, setup_context=_save)
