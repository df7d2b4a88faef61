"""The loss without logits: with labels in training, the backbone runs and the head is joined to the
cross-entropy.

The instance's ``forward`` is replaced by a method that decides on every call and otherwise runs the class'
own.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from longspan.patch import heads, probe, steps
from longspan.patch.heads import LogitTransform
from longspan.patch.tokens.state import SIGNALS, Signals

STATE = "_longspan_loss"
CAPTURE = "_longspan_capture"


@dataclass
class LossState:
    """How this model turns hidden states into logits, and the names of its forward's positional arguments."""

    transform: LogitTransform
    parameters: tuple[str, ...]


@dataclass
class Capture:
    """Where the decoder's hook leaves the last hidden state while ``armed``."""

    armed: bool = False
    hidden: Tensor | None = None


def _capture(decoder: nn.Module, _args: Any, output: Any) -> None:
    box: Capture | None = getattr(decoder, CAPTURE, None)
    if box is not None and box.armed:
        box.hidden = output[0] if isinstance(output, tuple) else output.last_hidden_state


def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Logits when they are wanted; loss alone with labels in training."""
    state: LossState | None = getattr(self, STATE, None)
    if state is None or not self.training or not torch.is_grad_enabled():
        return type(self).forward(self, *args, **kwargs)
    kwargs.update(zip(state.parameters, args, strict=False))
    labels, shifted = kwargs.get("labels"), kwargs.get("shift_labels")
    kept = kwargs.get("logits_to_keep", 0)
    if (labels is None and shifted is None) or isinstance(kept, Tensor) or kept != 0:
        return type(self).forward(self, **kwargs)
    return _fused(self, state, labels, shifted, kwargs)


def _fused(model: Any, state: LossState, labels: Tensor | None, shifted: Tensor | None, kwargs: dict[str, Any]) -> Any:
    if hasattr(model, "_loss_function"):
        raise ValueError(
            "model.loss_function was replaced, but longspan computes the loss itself; "
            "set lean.loss: false in the recipe to use your own"
        )
    num_items = kwargs.pop("num_items_in_batch", None)
    ignore_index = kwargs.pop("ignore_index", -100)
    as_tuple = kwargs.pop("return_dict", None) is False
    kwargs.pop("shift_labels", None)
    device = labels.device if labels is not None else shifted.device  # type: ignore[union-attr]
    # The official way to ask for no logits: the head runs on no rows.
    kwargs.update(labels=None, return_dict=True, logits_to_keep=torch.zeros(0, dtype=torch.int64, device=device))
    if kwargs.get("use_cache") is None and "use_cache" in state.parameters:
        kwargs["use_cache"] = False  # the config's default would keep every key and value a second time
    output, hidden = _run_captured(model, kwargs)
    if getattr(output, "aux_loss", None) is not None:
        raise ValueError(
            "the router's auxiliary loss (output_router_logits=True) is not served by longspan's loss; "
            "turn it off in the config or set lean.loss: false in the recipe"
        )
    if shifted is None:
        assert labels is not None
        shifted = nn.functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    if shifted.shape != hidden.shape[:-1]:
        raise ValueError(f"labels are {list(shifted.shape)} but the model scores {list(hidden.shape[:-1])} tokens")
    head, targets = model.get_output_embeddings(), shifted.to(hidden.device)
    signals: Signals | None = getattr(model, SIGNALS, None)
    if signals is not None and signals.wants_losses:
        signals.losses = heads.token_losses(head, hidden, targets, state.transform, ignore_index=ignore_index)
    loss = heads.head_loss(head, hidden, targets, state.transform, ignore_index=ignore_index, num_items=num_items)
    counter = steps.steps_of(model.get_decoder())
    if counter is not None:
        counted: Tensor | float = 1.0 if num_items is None else (targets != ignore_index).sum() / num_items
        loss = counter.losses.heard(loss, counted)
    fields = {name: value for name, value in output.items() if name not in ("loss", "logits")}
    output = type(output)(loss=loss, **fields)
    return output.to_tuple() if as_tuple else output


def _run_captured(model: Any, kwargs: dict[str, Any]) -> tuple[Any, Tensor]:
    box: Capture = getattr(model.get_decoder(), CAPTURE)
    box.armed = True
    try:
        output = type(model).forward(model, **kwargs)
        hidden = box.hidden
    finally:
        box.armed, box.hidden = False, None
    if hidden is None:
        raise ValueError(f"{type(model).__name__} did not run its decoder; set lean.loss: false in the recipe")
    return output, hidden


def _forward_for(cls: type[nn.Module]) -> FunctionType:
    """A copy of `_forward` with the signature of the class' own, which Trainer and ``generate``
    read.
    """
    # No functools.wraps: accelerate follows __wrapped__ down to the stock forward and drops ours.
    copied = FunctionType(_forward.__code__, _forward.__globals__, "forward", _forward.__defaults__)
    copied.__signature__ = inspect.signature(cls.forward)  # type: ignore[attr-defined]
    copied.__doc__ = _forward.__doc__
    copied.__dict__["longspan"] = True
    return copied


def _is_ours(forward: Any) -> bool:
    return getattr(getattr(forward, "__func__", None), "longspan", False) is True


REMEDY = "set lean.loss: false in the recipe to keep transformers' loss"


def refuse(model: Any) -> None:
    """Raise ``ValueError`` for what can be told without running the model."""
    name = type(model).__name__
    if "forward" in model.__dict__ or hasattr(model, "_hf_hook"):
        raise ValueError(
            f"{name}.forward was already replaced on this instance by another library; undo that, or {REMEDY}"
        )
    if hasattr(model, "_loss_function"):
        raise ValueError(f"{name}.loss_function was replaced by one of your own; {REMEDY}")
    if not {"labels", "logits_to_keep"} <= set(_parameters(model)):
        raise ValueError(f"{name}.forward takes no labels or no logits_to_keep; {REMEDY}")
    if getattr(model.config, "output_router_logits", False):
        raise ValueError(f"{name} adds a router's auxiliary loss (config.output_router_logits=True); {REMEDY}")


def _parameters(model: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(type(model).forward).parameters)[1:]


def install(model: Any) -> None:
    """Give ``model`` the segmented loss. Raises ``ValueError`` when logits are not ``transform(head(hidden))``."""
    decoder = model.get_decoder()
    decoder.register_forward_hook(_capture)
    setattr(decoder, CAPTURE, Capture())
    try:
        state = LossState(heads.transform_of(model.config), _parameters(model))
        _check(model, state.transform)
    except BaseException:
        remove(model)
        raise
    setattr(model, STATE, state)
    model.forward = MethodType(_forward_for(type(model)), model)


def _check(model: Any, transform: LogitTransform) -> None:
    box: Capture = getattr(model.get_decoder(), CAPTURE)
    box.armed = True
    try:
        logits, hidden = probe.trial(model).logits, box.hidden
    finally:
        box.armed, box.hidden = False, None
    name = type(model).__name__
    if hidden is None:
        raise ValueError(f"{name} did not run its decoder; {REMEDY}")
    with probe.evaluating(model):
        fits, error = probe.agree(transform(model.get_output_embeddings()(hidden)), logits)
    if not fits:
        raise ValueError(
            f"{name} does something to its logits that longspan does not know (relative difference "
            f"{error:.1e} on {probe.TOKENS} tokens); {REMEDY}"
        )


def remove(model: Any) -> None:
    """Undo `install`. A forward wrapped since then by another library stays and runs the class' own."""
    if STATE in model.__dict__:
        delattr(model, STATE)
    if _is_ours(model.__dict__.get("forward")):
        del model.forward
    decoder = model.get_decoder()
    # By value, not by handle: this also works on a deep copy of the model.
    for key in [key for key, hook in decoder._forward_hooks.items() if hook is _capture]:
        del decoder._forward_hooks[key]
    if CAPTURE in decoder.__dict__:
        delattr(decoder, CAPTURE)
