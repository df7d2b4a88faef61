"""Files stay short: 400 lines, kernels 600."""

from __future__ import annotations

from pathlib import Path

FOLDERS = ("csrc", "python", "tests", "bench", "docs", "examples", "recipes")
SUFFIXES = {".py", ".cpp", ".h", ".cu", ".cuh", ".md", ".yaml", ".txt", ".toml"}
LIMIT = 400
KERNEL_LIMIT = 600


def too_long(root: Path) -> list[str]:
    """The sources and pages under `root` that are longer than their limit."""
    files = [p for folder in FOLDERS for p in sorted((root / folder).rglob("*")) if p.is_file()]
    files += [p for p in sorted(root.iterdir()) if p.is_file()]
    found = []
    for path in files:
        name = path.relative_to(root)
        if path.suffix not in SUFFIXES or any(part.endswith(".egg-info") for part in name.parts):
            continue
        limit = KERNEL_LIMIT if name.parts[:2] == ("csrc", "kernels") else LIMIT
        with path.open(encoding="utf-8") as lines:
            count = sum(1 for _ in lines)
        if count > limit:
            found.append(f"{name}: {count} lines, allowed {limit}")
    return found


def test_files_are_short(root: Path) -> None:
    assert too_long(root) == []


def test_a_long_file_is_found(tmp_path: Path) -> None:
    def write(name: str, lines: int) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x\n" * lines)

    write("python/longspan/good.py", LIMIT)
    write("csrc/kernels/a/good.cpp", KERNEL_LIMIT)
    write("bench/records/data.jsonl", 5000)
    assert too_long(tmp_path) == []
    write("python/longspan/bad.py", LIMIT + 1)
    write("csrc/kernels/a/bad.cpp", KERNEL_LIMIT + 1)
    write("csrc/ops/bad.cpp", KERNEL_LIMIT)
    write("setup.py", LIMIT + 1)
    assert [line.split(":")[0] for line in too_long(tmp_path)] == [
        "csrc/kernels/a/bad.cpp",
        "csrc/ops/bad.cpp",
        "python/longspan/bad.py",
        "setup.py",
    ]
