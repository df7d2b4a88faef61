"""Modules that a patched model has beside its own: saved in a file of their own, in no state dict of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

NARROW = (torch.bfloat16, torch.float16)


class Beside(nn.Module):
    """A module whose tensors are left out when its model is saved, loaded or made narrower than float32.

    What `kept` names is saved by `beside_tensors`; its parameters have no weight decay in `longspan.train`.
    """

    def kept(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs, by name."""
        return dict(self.named_parameters(recurse=False)) | dict(self.named_buffers(recurse=False))

    @torch.no_grad()
    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `kept` gave."""
        for name, own in self.kept().items():
            own.copy_(tensors[name])

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Nothing: a saved model must load without longspan."""

    def _load_from_state_dict(self, *arguments: Any) -> None:
        """Nothing is expected."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def wide(tensor: Tensor) -> Tensor:
            made = fn(tensor)
            return tensor.to(made.device) if made.dtype in NARROW else made

        return super()._apply(wide, recurse)


def beside_modules(model: nn.Module) -> Iterator[tuple[str, Beside]]:
    """A model's modules of this kind by their path."""
    for path, module in model.named_modules():
        if isinstance(module, Beside):
            yield path, module


def beside_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Their parameters that train."""
    return [p for _, module in beside_modules(model) for p in module.parameters() if p.requires_grad]


def beside_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All that they keep, on the CPU, by full name."""
    return {
        f"{path}.{name}": tensor.detach().cpu().contiguous()
        for path, module in beside_modules(model)
        for name, tensor in module.kept().items()
    }


def check_beside(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Raises ValueError naming a tensor that is missing, unknown or of another shape for `take_beside`."""
    own = {f"{path}.{name}": tensor for path, module in beside_modules(model) for name, tensor in module.kept().items()}
    for name, tensor in own.items():
        if name not in tensors:
            raise ValueError(f"{where}: tensor {name} is missing; it was saved by a model that is patched otherwise")
        if tensors[name].shape != tensor.shape:
            raise ValueError(
                f"{where}: tensor {name} is {list(tensors[name].shape)}, the model's is {list(tensor.shape)}"
            )
    unknown = [name for name in tensors if name not in own]
    if unknown:
        raise ValueError(f"{where}: tensor {unknown[0]} is of a module that this model lacks; patch it as it was saved")


def take_beside(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `beside_tensors` gave."""
    for path, module in beside_modules(model):
        module.take({name: tensors[f"{path}.{name}"] for name in module.kept()})
