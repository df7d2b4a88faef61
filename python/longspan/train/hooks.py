"""What a run does after each step besides the step: slow weights, in checkpoints beside the trained ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback

from longspan.recipe import Recipe

FILE = "slow_weights.safetensors"


class Hooks(TrainerCallback):
    """The hooks of `recipe.update` over the parameters that train; none is the usual case."""

    def __init__(self, recipe: Recipe, model: nn.Module) -> None:
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._all = [hook.start(named) for hook in recipe.update.hooks]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the optimizer, before a checkpoint."""
        for each in self._all:
            each.update()

    def save(self, folder: Path) -> None:
        """Into a checkpoint."""
        for each in self._all:
            save_file(each.state_dict(), folder / FILE, {"format": "pt"})

    def load(self, folder: Path) -> None:
        """From a checkpoint. Raises FileNotFoundError or ValueError naming what is missing."""
        for each in self._all:
            if not (folder / FILE).is_file():
                raise FileNotFoundError(f"{folder} has no {FILE}, which update.hooks needs")
            each.load_state_dict(load_file(folder / FILE))

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The model as it is evaluated and saved at the end."""
        if not self._all:
            yield
            return
        with self._all[0].in_place():
            yield
