"""An exponential moving average of weights, and a model that has it for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class SlowWeights:
    """slow = decay slow + (1 - decay) weight, once in ``every`` calls of `update` (arXiv 2211.03186).

    named: parameters by name; tied ones once. The average is float32 whatever the parameters are: in bfloat16 a step of
    1 - decay would be lost.
    """

    def __init__(self, named: Mapping[str, nn.Parameter], decay: float = 0.999, every: int = 1) -> None:
        if not 0 <= decay <= 1 or every < 1:
            raise ValueError(f"decay is {decay} and every {every}; allowed: 0 to 1, and at least 1")
        self.decay, self.every, self.steps = decay, every, 0
        self._named = dict(named)
        self.slow = {name: p.detach().float().clone() for name, p in named.items()}

    @torch.no_grad()
    def update(self) -> None:
        """After an optimizer's step."""
        self.steps += 1
        if self.steps % self.every:
            return
        for name, slow in self.slow.items():
            slow.lerp_(self._named[name].float(), 1 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The parameters have the slow values, rounded to their dtype, and their own bits again afterwards."""
        fast = {name: p.detach().clone() for name, p in self._named.items()}
        self._put(self.slow)
        try:
            yield
        finally:
            self._put(fast)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, p in self._named.items():
            p.copy_(values[name])

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs."""
        return {**self.slow, "steps": torch.tensor(self.steps)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Raises ValueError for the average of other parameters."""
        if set(state) != {*self.slow, "steps"}:
            odd = sorted(set(state) ^ {*self.slow, "steps"})
            raise ValueError(f"the saved moving average is of other parameters: {odd[0]}")
        self.steps = int(state["steps"])
        for name, slow in self.slow.items():
            slow.copy_(state[name])
