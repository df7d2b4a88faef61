"""A trial forward on a few tokens, and how far two results may differ."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

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
    """The output of ``model`` on `TOKENS` fixed token ids, in evaluation mode, without cache."""
    embedding = model.get_input_embeddings()
    ids = (torch.arange(TOKENS, device=embedding.weight.device) * 7 + 1) % embedding.weight.shape[0]
    with evaluating(model):
        return model(input_ids=ids[None], use_cache=False, return_dict=True)


def agree(given: Tensor, expected: Tensor, base: Tensor | None = None) -> tuple[bool, float]:
    """Whether two results agree, and their largest difference relative to the largest entry.

    With a base, what both add to it is compared, beyond the rounding of the sums themselves: a residual stream may be
    far larger than what a layer adds. Fake tensors (a model that `longspan plan` builds without memory) have shapes to
    compare, no values.
    """
    if isinstance(given, FakeTensor) or isinstance(expected, FakeTensor):
        return given.shape == expected.shape, 0.0
    tolerance = _TOLERANCE.get(expected.dtype, _TOLERANCE_OF_HALVES)
    given, expected = given.detach().double(), expected.detach().double()
    difference, added = (given - expected).abs(), expected
    if base is not None:
        added = expected - base.detach().double()
        difference = (difference - 4 * torch.finfo(base.dtype).eps * expected.abs()).clamp(min=0)
    error = float((difference.max() / added.abs().max().clamp(min=1e-30)).item())
    return error <= tolerance, error
