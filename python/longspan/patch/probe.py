"""A trial forward on a few tokens, and how far two results may differ."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

TOKENS = 12
# Relative to the largest logit; two correct orders of summation stay far below.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_TOLERANCE_OF_HALVES = 5e-2


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module gets its own training flag and the generator its state
    back.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module in training:
            module.training = True


def trial(model: Any) -> Any:
    """The output of ``model`` on :data:`TOKENS` fixed token ids, in evaluation mode, without cache."""
    embedding = model.get_input_embeddings()
    ids = (torch.arange(TOKENS, device=embedding.weight.device) * 7 + 1) % embedding.weight.shape[0]
    with evaluating(model):
        return model(input_ids=ids[None], use_cache=False, return_dict=True)


def agree(given: Tensor, expected: Tensor) -> tuple[bool, float]:
    """Whether two logit tensors agree, and their largest difference relative to the largest logit."""
    scale = expected.detach().abs().max().double().clamp(min=1e-30)
    error = float(((given - expected).detach().abs().max().double() / scale).item())
    return error <= _TOLERANCE.get(expected.dtype, _TOLERANCE_OF_HALVES), error
