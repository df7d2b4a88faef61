"""Planted bugs are left out only while nothing changed that decides whether they are seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cuda.mutants import Ledger


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A tree with two kernel families."""
    for name in (
        "csrc/kernels/norm/fwd.cu",
        "csrc/kernels/rope/fwd.cu",
        "csrc/kernels/common/simt.h",
        "csrc/simt/a.cpp",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


def test_a_change_of_a_family_concerns_it_alone(checkout: Path) -> None:
    ledger = Ledger(checkout, checkout / "stamps")
    assert not ledger.seen("norm")
    ledger.record(["norm", "rope"])
    assert ledger.seen("norm")
    (checkout / "csrc/kernels/norm/fwd.cu").write_text("changed")
    assert not ledger.seen("norm")
    assert ledger.seen("rope")


@pytest.mark.parametrize("name", ["csrc/kernels/common/simt.h", "csrc/simt/a.cpp", "csrc/simt/new.cpp"])
def test_a_change_of_what_they_share_concerns_all(checkout: Path, name: str) -> None:
    ledger = Ledger(checkout, checkout / "stamps")
    ledger.record(["norm", "rope"])
    (checkout / name).write_text("changed")
    assert not ledger.seen("norm")
    assert not ledger.seen("rope")


def test_older_notes_go(checkout: Path) -> None:
    ledger = Ledger(checkout, checkout / "stamps")
    ledger.record(["norm"])
    (checkout / "csrc/kernels/norm/fwd.cu").write_text("changed")
    ledger.record(["norm"])
    assert len(list((checkout / "stamps").iterdir())) == 1
