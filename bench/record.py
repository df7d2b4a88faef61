"""A benchmark record: one JSON line a measurement, appended, never overwritten."""

from __future__ import annotations

import json
import platform
import re
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import longspan
from longspan import kernels

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "bench" / "records"
SCHEMA = 1


@dataclass(frozen=True)
class Times:
    """Seconds of the rounds of one function."""

    median: float
    p20: float
    p80: float
    min: float
    rounds: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Times:
        """Statistics of at least one round."""
        if not seconds:
            raise ValueError("Times.of: no rounds were timed")
        ordered = sorted(seconds)

        def at(share: float) -> float:
            return ordered[round(share * (len(ordered) - 1))]

        return cls(statistics.median(ordered), at(0.2), at(0.8), ordered[0], len(ordered))


@dataclass(frozen=True)
class Gate:
    """The correctness check before timing: the largest errors against float64, of ours and of torch in our dtype."""

    passed: bool
    err_vs_f64: float
    err_torch_vs_f64: float


@dataclass(frozen=True)
class Baseline:
    """A competitor in the same rounds. ratio: median over rounds of its time / ours."""

    median: float
    ratio: float


@dataclass
class Record:
    """One measurement. key names op, device, dtype and shapes; impl is the route (longspan.ops, longspan.kernels)."""

    key: str
    impl: str
    mode: str
    gate: Gate
    time_s: Times | None = None
    flops: float | None = None
    of_roofline: float | None = None  # share of torch.mm's rate or of a copy's, in the same rounds
    memory: dict[str, int] | None = None  # peak_live_bytes measured, predicted_bytes by the formula
    baselines: dict[str, Baseline] = field(default_factory=dict)
    targets: dict[str, bool] = field(default_factory=dict)  # what the docs promise -> whether this row meets it
    env: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    seed: int = 0
    utc: str = ""
    schema: int = SCHEMA

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), allow_nan=False)


def append(record: Record, path: Path) -> None:
    """Adds the record as the last line of the file, in one write."""
    record.utc = record.utc or datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(record.to_json() + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """All records of a file. Raises FileNotFoundError, or ValueError naming the malformed line."""
    if not path.is_file():
        raise FileNotFoundError(f"no benchmark records at {path}; `longspan bench` writes them to bench/records")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not JSON: {error}") from None
        if not isinstance(row, dict) or row.get("schema") != SCHEMA or "key" not in row:
            raise ValueError(f"{path}:{number}: not a benchmark record of schema {SCHEMA}")
        rows.append(row)
    return rows


def environment(threads: int) -> dict[str, Any]:
    """Versions, commit and hardware; no host name."""
    commit = _git("rev-parse", "--short=12", "HEAD")
    return {
        "longspan": longspan.__version__,
        "commit": commit or None,
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/records")),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "compiler": kernels.compiler,
        "cuda": torch.version.cuda,
        "device": cpu_model(),
        "threads": threads,
        "isa": kernels.instruction_set(),
    }


def cpu_model() -> str:
    """The processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return named[1].strip() if named else platform.machine()


def default_path(threads: int) -> Path:
    """bench/records/<processor>-<threads>-threads.jsonl"""
    slug = re.sub(r"[^a-z0-9]+", "-", cpu_model().lower()).strip("-")
    return RECORDS / f"{slug}-{threads}-threads.jsonl"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
