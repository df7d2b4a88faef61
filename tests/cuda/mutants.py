"""Which planted bugs a run must plant again: those of kernel families that changed since all were last seen."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
STAMPS = ROOT / "build" / "simt" / "mutants"
MARK = "mutants"
_SHARED = ("csrc/kernels/common", "csrc/simt", "tests/cuda", "tests/ops")
_SUFFIXES = {".cu", ".cuh", ".h", ".cpp", ".py", ".txt"}


def sources(root: Path, family: str) -> list[Path]:
    """What decides whether a family's planted bugs are seen: its kernels, the engine, the tests."""
    folders = [root / "csrc" / "kernels" / family, *(root / name for name in _SHARED)]
    return sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in _SUFFIXES)


def digest(root: Path, family: str) -> str:
    """A hash of the names and contents of the sources."""
    found = hashlib.sha256()
    for path in sources(root, family):
        found.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]


class Ledger:
    """The families whose planted bugs were all seen, by digest; kept in files named by it."""

    def __init__(self, root: Path = ROOT, stamps: Path = STAMPS) -> None:
        self.root, self.stamps = root, stamps

    def _stamp(self, family: str) -> Path:
        return self.stamps / f"{family}-{digest(self.root, family)}"

    def seen(self, family: str) -> bool:
        """Whether all were seen with the present sources."""
        return self._stamp(family).is_file()

    def record(self, families: Iterable[str]) -> None:
        """Notes that all were seen; older notes of the families go."""
        for family in families:
            self.stamps.mkdir(parents=True, exist_ok=True)
            for old in self.stamps.glob(f"{family}-*"):
                old.unlink()
            self._stamp(family).touch()
