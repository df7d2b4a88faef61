"""`python -m bench.static`: compile the CUDA kernels, print the figures, and say what breaks a requirement."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bench.static import budgets, gate, page
from bench.static.architectures import ARCHITECTURES
from bench.static.compile import CompileWarning, nvcc_version
from bench.static.figures import Figures, collect
from bench.static.tools import ToolError
from tests.cuda.toolkit import MissingToolkit


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="longspan bench --static", description=__doc__)
    p.add_argument("--markdown", action="store_true", help="write the tables of the pages in docs")
    p.add_argument("--update", action="store_true", help="make the present figures the budget, and write the pages")
    p.add_argument("--table", choices=list(page.TABLES), action="append", help="print only this table (repeatable)")
    return p


def problems(figures: Figures) -> list[str]:
    """Every broken requirement."""
    return [
        *gate.memory_violations(figures),
        *gate.start_violations(figures),
        *gate.instruction_violations(figures),
        *gate.share_violations(figures),
        *(budgets.violations(figures, budgets.read()) if budgets.PATH.is_file() else ["no tests/cuda/budgets.json"]),
    ]


def main(arguments: Sequence[str]) -> int:
    """Exit code: 1 when a requirement is broken, 2 when there is no compiler or it refuses or warns."""
    options = parser().parse_args(arguments)
    try:
        figures = collect(tuple(ARCHITECTURES))
    except (MissingToolkit, ToolError, CompileWarning) as error:
        print(error, file=sys.stderr)
        return 2
    if options.update:
        budgets.write(figures)
    if options.update or options.markdown:
        page.update(figures)
    for name in options.table or page.TABLES:
        print(f"{name}\n\n{page.TABLES[name](figures)}\n")
    spent = sum(each.cpu_seconds for each in figures.compiled)
    print(f"{len(figures.kernels)} kernels, nvcc {nvcc_version()}, {spent:.0f} s of CPU time to compile")
    found = problems(figures)
    print("\n".join(found) or "all requirements are met")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
