"""Settings of every test: repeatable property tests, two threads, and a summary of what this machine could not run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from longspan import registry
from tests import machine
from tests.chat import make_tokenizer

settings.register_profile("longspan", deadline=None, derandomize=True, print_blob=True, database=None)
settings.load_profile("longspan")
torch.set_num_threads(2)

SMALL_MODELS = (
    "adapters",
    "analysis",
    "examples",
    "nn",
    "patch",
    "plan",
    "positions",
    "updates",
)  # so small that threads only wait for each other
BUILDS = ("cuda", "package")  # folders whose tests share the emulation, the compiled kernels or the wheel


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--all-mutants`, which `make test-all` gives."""
    parser.addoption("--all-mutants", action="store_true", help="plant all bugs, also of kernels that did not change")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """What one process runs where several share the tests: a file; all files that share a build."""
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.split("::")[0]
            return next((folder for folder in BUILDS if f"/{folder}/" in path), path)

    return Together(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Names the devices and instruction sets whose tests did not run, so that green means no more than it does."""
    terminalreporter.section("devices and instruction sets")
    for line in machine.coverage_lines():
        terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """One thread for folders of small models; a test may ask for another number, the next one does not get it."""
    threads = torch.get_num_threads()
    if request.path.relative_to(Path(__file__).parent).parts[0] in SMALL_MODELS:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def own_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods that the test registers are gone afterwards; those of longspan are registered before."""
    import longspan.recipe  # noqa: F401

    methods = {axis: dict(known) for axis, known in registry._METHODS.items()}
    monkeypatch.setattr(registry, "_METHODS", methods)


@pytest.fixture(scope="session")
def root() -> Path:
    """The source checkout."""
    return Path(__file__).parents[1]


@pytest.fixture(scope="session")
def chat_tokenizer() -> Any:
    """The tokenizer of :mod:`tests.chat`, made once."""
    return make_tokenizer()
