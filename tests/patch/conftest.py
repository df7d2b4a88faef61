"""Every family by name."""

from __future__ import annotations

import pytest

from families import FAMILIES


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    """The family's name, once each."""
    return request.param
