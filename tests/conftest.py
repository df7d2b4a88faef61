"""Settings of every test: repeatable property tests, two threads, and a summary of what this machine could not run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from tests import machine
from tests.chat import make_tokenizer

settings.register_profile("longspan", deadline=None, derandomize=True, print_blob=True, database=None)
settings.load_profile("longspan")
torch.set_num_threads(2)

BUILDS = ("cuda", "package")  # folders whose tests share the emulation, the compiled kernels or the wheel


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--all-mutants`, which `make test-all` gives."""
    parser.addoption("--all-mutants", action="store_true", help="plant all bugs, also of kernels that did not change")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What one process runs where several share the tests (pytest-xdist): a file; all files that share a build."""
    here = Path(__file__).parent
    for item in items:
        folder = item.path.relative_to(here).parts[0]
        item.add_marker(pytest.mark.xdist_group(folder if folder in BUILDS else str(item.path)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Names the devices and instruction sets whose tests did not run, so that green means no more than it does."""
    terminalreporter.section("devices and instruction sets")
    for line in machine.coverage_lines():
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def root() -> Path:
    """The source checkout."""
    return Path(__file__).parents[1]


@pytest.fixture(scope="session")
def chat_tokenizer() -> Any:
    """The tokenizer of :mod:`tests.chat`, made once."""
    return make_tokenizer()
