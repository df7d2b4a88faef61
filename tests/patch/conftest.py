"""Every family by name, and one thread: on models this small, threads only wait for each other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from families import FAMILIES


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    """The family's name, once each."""
    return request.param


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
