"""Any call of a kernel on arrays: right, or refused by name; never memory that is not the call's."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longspan import kernels
from tests.fuzz import kernel_calls  # noqa: F401
from tests.fuzz.calls import DRAWINGS, fuzz

NAMES = sorted(name for name in DRAWINGS if name.startswith("kernels."))


def test_every_kernel_has_a_drawing() -> None:
    assert {f"kernels.{name}" for name in dir(kernels) if callable(getattr(kernels, name))} == set(NAMES)


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
