"""Options of the benchmarks, the writer of records and the table at the end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from bench import record as records
from bench.table import rows_table

QUICK_SECONDS = 6.0
FULL_SECONDS = 30.0


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("longspan")
    group.addoption("--full", action="store_true", help=f"{FULL_SECONDS:.0f} s a row instead of {QUICK_SECONDS:.0f} s")
    group.addoption("--bench-threads", type=int, default=2, help="threads of every competitor")
    group.addoption("--records", type=Path, default=None, help="file to append to")
    group.addoption("--bench-command", default="python -m pytest bench", help="the command to note in the records")


@dataclass
class Session:
    """What the rows share."""

    seconds: float
    threads: int
    path: Path
    command: str
    environment: dict[str, object]
    written: list[records.Record] = field(default_factory=list)

    def write(self, record: records.Record) -> None:
        """Completes and appends a record."""
        record.env, record.command = self.environment, self.command
        records.append(record, self.path)
        self.written.append(record)

    def write_red(self, key: str, impl: str, mode: str, gate: records.Gate) -> None:
        """Appends a row that was not timed because its check failed."""
        self.write(records.Record(key, impl, mode, gate))


_KEY: pytest.StashKey[Session] = pytest.StashKey()


@pytest.fixture(scope="session")
def session(pytestconfig: pytest.Config) -> Iterator[Session]:
    """The settings of this run and the file its records go to."""
    threads = pytestconfig.getoption("--bench-threads")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    seconds = FULL_SECONDS if pytestconfig.getoption("--full") else QUICK_SECONDS
    path = pytestconfig.getoption("--records") or records.default_path(threads)
    command = pytestconfig.getoption("--bench-command")
    made = Session(seconds, threads, path, command, records.environment(threads))
    pytestconfig.stash[_KEY] = made
    yield made
    torch.set_num_threads(before)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    made = config.stash.get(_KEY, None)
    if made is None or not made.written:
        return
    terminalreporter.section("longspan benchmarks")
    terminalreporter.write_line(rows_table(made.written))
    terminalreporter.write_line(f"appended to {made.path}")
