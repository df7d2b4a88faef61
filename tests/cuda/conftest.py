"""Leaves out planted bugs of families whose sources did not change since all were seen (`--all-mutants`: none)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cuda.mutants import MARK, Ledger

_FAMILIES = pytest.StashKey[dict[str, bool]]()  # of this run: whether all planted bugs were seen so far


def _family(item: pytest.Item) -> str | None:
    mark = item.get_closest_marker(MARK)
    return None if mark is None else str(mark.args[0])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    families = {family for item in items if (family := _family(item))}
    ledger = Ledger()
    known = set() if config.getoption("all_mutants") else {family for family in families if ledger.seen(family)}
    config.hook.pytest_deselected(items=[item for item in items if _family(item) in known])
    items[:] = [item for item in items if _family(item) not in known]
    # A part of a family's planted bugs proves nothing about the others: only runs of this whole folder count.
    here = Path(__file__).parent
    whole = not config.getoption("keyword") and bool({here, *here.parents} & {Path(a).resolve() for a in config.args})
    config.stash[_FAMILIES] = dict.fromkeys(families - known, True) if whole else {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    report = yield
    families = item.config.stash.get(_FAMILIES, {})
    family = _family(item)
    if family in families and not report.passed:
        families[family] = False
    return report


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        Ledger().record(family for family, seen in session.config.stash.get(_FAMILIES, {}).items() if seen)
