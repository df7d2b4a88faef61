"""Any call of an op, or of a kernel on arrays: a valid one is right, and one with a spoiled argument is refused by name
or is right as well; never memory that is not the call's."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longspan import kernels, ops
from tests.fuzz import attending, choosing, kernel_calls, rows, updating  # noqa: F401
from tests.fuzz.calls import DRAWINGS, fuzz

NAMES = sorted(DRAWINGS)


def test_every_public_entry_has_a_drawing() -> None:
    entries = {f"ops.{name}" for name in ops.__all__ if callable(getattr(ops, name))}
    entries |= {f"kernels.{name}" for name in dir(kernels) if callable(getattr(kernels, name))}
    assert entries == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=3, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_some_calls(name: str, data: Any) -> None:
    fuzz(name, data)


@pytest.mark.sweep
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=120, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_many_calls(name: str, data: Any) -> None:
    fuzz(name, data)
