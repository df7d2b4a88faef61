"""What the configs of update engines, transforms and hooks share, and what the trainer asks of them."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from longspan.registry import Method

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn
    from torch.optim import Optimizer

    from longspan.updates.slow_weights import SlowWeights


class UpdateEngine(Method):
    """Config of an update engine: how trained parameters change in a step."""

    forward_only: ClassVar[bool] = False
    """Whether a step needs losses only: no backward pass runs, and nothing is saved for one."""

    @abstractmethod
    def optimizer(self, groups: list[dict[str, Any]], *, seed: int, **options: Any) -> Optimizer:
        """The optimizer over groups of named parameters; options: of `longspan.updates.FusedOptimizer`."""


class UpdateTransform(Method):
    """Config of an update transform: what happens to gradients between accumulation and the engine."""

    needs_all_weights: ClassVar[bool] = False
    """Whether it says by itself what trains, so that all of the model's weights must."""

    def select(self, model: nn.Module, *, seed: int, partial: bool = False) -> None:
        """Freezes what does not train, before there is an optimizer; partial: the model lacks some of its layers."""

    def options(self, named: dict[str, nn.Parameter]) -> dict[str, Any]:
        """Options of `longspan.updates.FusedOptimizer` that it sets."""
        return {}

    def group_of(self, name: str, parameter: nn.Parameter) -> dict[str, Any]:
        """Options of the parameter group that a parameter belongs to."""
        return {}

    def attach(self, optimizer: Any, named: dict[str, nn.Parameter]) -> None:
        """What is told to an optimizer that exists."""


class UpdateHook(Method):
    """Config of a hook: what happens after each step."""

    @abstractmethod
    def start(self, named: Mapping[str, nn.Parameter]) -> SlowWeights:
        """Something with `update`, `in_place` (what is evaluated and saved), `state_dict` and `load_state_dict`."""
