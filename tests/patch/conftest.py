"""One fixture: every family by name."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    """The family's name, once each."""
    return request.param


@pytest.fixture(autouse=True)
def _one_generator() -> None:
    torch.manual_seed(0)
