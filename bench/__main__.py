"""`longspan bench`: run the benchmarks, compare two record files, or plot one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench import compare, plot
from bench.record import ROOT, default_path, read


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="longspan bench", description=__doc__)
    p.add_argument("-k", metavar="EXPRESSION", help="only rows whose name matches, as in pytest")
    p.add_argument("--full", action="store_true", help="30 s a row instead of 6 s")
    p.add_argument("--threads", type=int, default=2, help="threads of every competitor (default 2)")
    p.add_argument("--records", type=Path, help="JSON Lines file to append to (default: bench/records/<processor>)")
    p.add_argument("--compare", type=Path, nargs=2, metavar=("OLD", "NEW"), help="compare two record files")
    p.add_argument(
        "--loss",
        type=float,
        default=compare.DEFAULT_LOSS,
        help="with --compare: exit 1 when a row is slower by more than this share and its [p20, p80] lies apart "
        "(default %(default)s)",
    )
    p.add_argument(
        "--static",
        action="store_true",
        help="what the compiler made of the CUDA kernels, and predicted times; first argument (then --static --help)",
    )
    p.add_argument("--plot", type=Path, metavar="PNG", help="plot the newest rows of --records and exit")
    return p


def run(options: argparse.Namespace, command: str) -> int:
    """Runs the rows through pytest; returns its exit code."""
    import pytest

    arguments = [str(ROOT / "bench"), "--rootdir", str(ROOT), "-q", "-p", "no:cacheprovider", "-s"]
    arguments += ["--benchmark-disable-gc", "--benchmark-columns=median,rounds", "--bench-command", command]
    arguments += ["--bench-threads", str(options.threads)]
    arguments += ["-k", options.k] if options.k else []
    arguments += ["--full"] if options.full else []
    arguments += ["--records", str(options.records.resolve())] if options.records else []
    return int(pytest.main(arguments))


def main(arguments: list[str]) -> int:
    """Exit code: 0, or 1 when a row failed or lost too much."""
    if arguments[:1] == ["--static"]:
        from bench.static.__main__ import main as static

        return static(arguments[1:])
    options = parser().parse_args(arguments)
    if options.static:
        raise ValueError("--static must be the first argument")
    if options.threads < 1:
        raise ValueError(f"--threads is {options.threads}; it must be at least 1")
    if options.compare:
        old, new = options.compare
        lines = compare.join(read(old), read(new), (str(old), str(new)))
        print(compare.table(lines, options.loss))
        worse = compare.slower(lines, options.loss)
        print(f"{len(worse)} of {len(lines)} rows slower by more than {options.loss:.0%}")
        return 1 if worse else 0
    if options.plot:
        print(plot.plot(read(options.records or default_path(options.threads)), options.plot))
        return 0
    return run(options, " ".join(["longspan bench", *arguments]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
