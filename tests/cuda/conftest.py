"""Leaves out planted bugs of families whose sources did not change since all were seen (`--all-mutants`: none)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.cuda.mutants import MARK, Ledger

_FAMILIES = pytest.StashKey[Counter[str]]()  # of this run: how many planted bugs were not seen yet


def _family(item: pytest.Item) -> str | None:
    mark = item.get_closest_marker(MARK)
    return None if mark is None else str(mark.args[0])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    families = {family for item in items if (family := _family(item))}
    ledger = Ledger()
    known = set() if config.getoption("all_mutants") else {family for family in families if ledger.seen(family)}
    config.hook.pytest_deselected(items=[item for item in items if _family(item) in known])
    items[:] = [item for item in items if _family(item) not in known]
    # A part of a family's planted bugs proves nothing about the others: only runs of this whole folder count, and of
    # processes that share the tests only the one that runs the family.
    here = Path(__file__).parent
    whole = not config.getoption("keyword") and bool({here, *here.parents} & {Path(a).resolve() for a in config.args})
    left = Counter(family for item in items if (family := _family(item)))
    config.stash[_FAMILIES] = left if whole else Counter()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    report = yield
    family = _family(item)
    if family is not None and report.when == "call" and report.passed:
        item.config.stash[_FAMILIES][family] -= 1
    return report


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        left = session.config.stash.get(_FAMILIES, Counter())
        Ledger().record(family for family, count in left.items() if count == 0)
