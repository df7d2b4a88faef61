"""Which part of a model an op's result belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

PROJECTIONS, ATTENTION, FEED_FORWARD = "projections", "attention", "feed-forward"
STREAM, LOSS, OTHER = "norms and residual stream", "loss", "other"
PARTS = (PROJECTIONS, ATTENTION, FEED_FORWARD, STREAM, LOSS, OTHER)

# By the first word of longspan's ops; what lora_linear makes depends on its weights.
_OPS = {"attention": ATTENTION, "glu": FEED_FORWARD, "rope": PROJECTIONS, "norm": STREAM, "linear": LOSS}
_OPS |= {"pq": ATTENTION, "topl": ATTENTION, "adc": ATTENTION, "list": ATTENTION, "grouped": FEED_FORWARD}


class Parts:
    """Tells parts by longspan's ops, by the weights that an op reads, and by the module that is running."""

    def __init__(self, model: nn.Module, head: nn.Module, layers: list[nn.Module]) -> None:
        self.of_module = _by_module(model, head, layers)
        self.of_weight = {
            parameter.untyped_storage()._cdata: self.of_module[id(module)]
            for module in model.modules()
            for parameter in module.parameters(recurse=False)
        }
        self.stack: list[str] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Follow the modules that run in the meantime."""

        def enter(module: nn.Module, _: Any) -> None:
            self.stack.append(self.of_module.get(id(module), self.stack[-1] if self.stack else OTHER))

        def leave(module: nn.Module, _: Any, __: Any) -> None:
            if self.stack:
                self.stack.pop()

        handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.stack.clear()

    def __call__(self, op: str, arguments: Any, output: int) -> str:
        """The part of one output of an op."""
        namespace, _, name = op.partition("::")
        if namespace == "longspan":
            family = name.split("_")[0]
            return self._of_linear(arguments, output) if family == "lora" else _OPS.get(family, OTHER)
        if "dot_product" in name:
            return ATTENTION
        return self.stack[-1] if self.stack else OTHER

    def _of_linear(self, arguments: Any, output: int) -> str:
        weights = [x for x in arguments if isinstance(x, (list, tuple)) and x and isinstance(x[0], Tensor)]
        if not weights:
            return OTHER
        residuals = weights[-1]
        if output < len(residuals) and residuals[output].dim() == 2:
            return STREAM
        return self.of_weight.get(weights[0][0].untyped_storage()._cdata, OTHER)


def _by_module(model: nn.Module, head: nn.Module, layers: list[nn.Module]) -> dict[int, str]:
    found = {id(module): OTHER for module in model.modules()}
    for module in model.modules():
        if module is head or any(child is head for child in module.children()):
            found |= {id(inner): LOSS for inner in (module, *head.modules())}
        elif isinstance(module, nn.Embedding) or _is_norm(module):
            found[id(module)] = STREAM
    for layer in layers:
        _mark_layer(layer, found)
    return found


def _mark_layer(layer: nn.Module, found: dict[int, str]) -> None:
    found[id(layer)] = STREAM
    attention = {id(inner) for module in layer.modules() if _is_attention(module) for inner in module.modules()}
    for module in layer.modules():
        if module is layer or _is_norm(module):
            found[id(module)] = STREAM
        elif id(module) in attention:
            inside = any(True for _ in module.parameters()) and not _is_attention(module)
            found[id(module)] = PROJECTIONS if inside else ATTENTION
        else:
            found[id(module)] = FEED_FORWARD


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _is_attention(module: nn.Module) -> bool:
    return "attention" in type(module).__name__.lower()
