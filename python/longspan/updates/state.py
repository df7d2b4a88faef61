"""State of an optimizer that is float32 whatever its parameters are."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor


def keep_state_dtypes(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
    """Puts loaded tensors of the state back as they were saved: torch casts them to the dtypes of the parameters."""
    saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
    own = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    for key, p in zip(saved, own, strict=True):
        for name, value in state_dict["state"].get(key, {}).items():
            if isinstance(value, Tensor):
                optimizer.state[p][name] = value.to(p.device, copy=True)
