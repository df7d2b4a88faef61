"""A batch of data through a model's decoder alone."""

from __future__ import annotations

from typing import Any

import torch

from longspan.patch.install import causal_model


@torch.no_grad()
def run_decoder(model: Any, batch: dict[str, Any]) -> None:
    """The decoder over one batch, without its head, in the mode that the model is in."""
    base = causal_model(model)
    given = {name: value for name, value in placed(batch, base.device).items() if name != "labels"}
    base.get_decoder()(**given, use_cache=False)


def placed(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with its tensors on the device."""
    return {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}
