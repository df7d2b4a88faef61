"""Benchmarks and the demo live in the source checkout; this finds them and hands over."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import longspan


def find_checkout() -> Path:
    """The source checkout that holds ``bench/``: the one longspan is imported from, or the current directory.

    Raises ``FileNotFoundError`` when there is none, as with an installed wheel.
    """
    for root in (Path(longspan.__file__).resolve().parents[2], Path.cwd()):
        project = root / "pyproject.toml"
        has_bench = (root / "bench" / "__init__.py").is_file() and project.is_file()
        if has_bench and 'name = "longspan"' in project.read_text(encoding="utf-8"):
            return root
    raise FileNotFoundError(
        "the demo and the benchmarks are part of the source checkout, not of the installed package: run this command "
        "inside a clone of longspan"
    )


def run_module(module: str, arguments: Sequence[str]) -> None:
    """Run ``module`` of the checkout as ``python -m module arguments`` would, in this process."""
    root = str(find_checkout())
    if root not in sys.path:
        sys.path.insert(0, root)
    if importlib.util.find_spec(module) is None:
        raise FileNotFoundError(f"this checkout ({root}) has no {module}")
    before = sys.argv
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        sys.argv = before
