"""Offloading in a dry run: saved tensors leave the device, and their copies are counted as host memory."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from longspan.patch.layers import STATE, Offload
from longspan.plan.ledger import Ledger


@dataclass
class _Copy:
    device: Tensor  # [0], tells where and of which dtype
    count: int


class CountingMover:
    """Moves nothing: `away` is a count of host bytes, `back` a new tensor on the device."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def away(self, x: Tensor) -> _Copy:
        """Count a copy of `x` for as long as what is returned lives."""
        kept = _Copy(x.new_empty(0), x.numel())
        self.ledger.on_host(kept, x.numel() * x.element_size())
        return kept

    def back(self, kept: _Copy) -> Tensor:
        """A fake tensor of the same size."""
        return kept.device.new_empty(kept.count)

    def here(self, coming: Tensor) -> Tensor:
        """As it is."""
        return coming


def count_offload(layers: list[nn.Module], ledger: Ledger) -> None:
    """Let patched layers that offload tell `ledger` instead of copying."""
    offload = Offload(CountingMover(ledger))
    for layer in layers:
        state = getattr(layer, STATE, None)
        if state is not None and state.offload is not None:
            state.offload = offload
