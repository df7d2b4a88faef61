"""Where documents come from: the demo corpus, files (.txt .jsonl .parquet), and `datasets` names."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from longspan import folders

SUFFIXES = (".txt", ".jsonl", ".parquet")

Place = tuple[str, Any]  # where a record stands, for messages; the record


class Source:
    """A deterministic sequence of records and a key that changes with its content."""

    name: str

    def key(self) -> str:
        """Hexadecimal hash of the content."""
        raise TypeError(f"{type(self).__name__} does not define key()")

    def records(self, columns: Sequence[str]) -> Iterator[Place]:
        """Yield (place, record) in a fixed order; ``columns`` are the keys that the caller will use."""
        raise TypeError(f"{type(self).__name__} does not define records()")


class Files(Source):
    """One file or the sorted files of a glob, all of one kind.

    A .txt file is one document, a .jsonl file holds one record a line, a .parquet file one a row.
    """

    def __init__(self, name: str, paths: Sequence[Path]) -> None:
        self.name, self.paths = name, list(paths)
        suffixes = {path.suffix for path in paths}
        if len(suffixes) > 1:
            raise ValueError(f"{name!r} matches files of several kinds ({', '.join(sorted(suffixes))}); give one kind")
        (self.suffix,) = suffixes
        if self.suffix not in SUFFIXES:
            raise ValueError(f"{name!r}: files ending in {self.suffix!r} cannot be read; allowed: {' '.join(SUFFIXES)}")
        for path in paths:
            if path.stat().st_size == 0:
                raise ValueError(f"{path} is empty")

    def key(self) -> str:
        digest = hashlib.blake2b(self.suffix.encode(), digest_size=16)
        for path in self.paths:
            digest.update(folders.hash_file(path).encode())
        return digest.hexdigest()

    def records(self, columns: Sequence[str]) -> Iterator[Place]:
        read = {".txt": _text, ".jsonl": _json_lines, ".parquet": _parquet}[self.suffix]
        for path in self.paths:
            yield from read(path, columns)


def _text(path: Path, columns: Sequence[str]) -> Iterator[Place]:
    try:
        yield str(path), {"text": path.read_text(encoding="utf-8")}
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from None


def _json_lines(path: Path, columns: Sequence[str]) -> Iterator[Place]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield f"{path} line {number}", json.loads(line.rstrip())
            except json.JSONDecodeError as error:
                raise ValueError(f"{path} line {number}: not JSON: {error.msg} at column {error.colno}") from None
            except UnicodeDecodeError as error:
                raise ValueError(f"{path} line {number}: not UTF-8 text: {error.reason}") from None


def _parquet(path: Path, columns: Sequence[str]) -> Iterator[Place]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path}: not a Parquet file: {error}") from None
    with file:
        names = file.schema_arrow.names
        for column in columns:
            if column not in names:
                raise ValueError(f"{path}: has no column {column!r}; its columns are {', '.join(names)}")
        number = 0
        for batch in file.iter_batches(columns=list(columns)):
            for record in batch.to_pylist():
                number += 1
                yield f"{path} row {number}", record


class HubDataset(Source):
    """A dataset that the package `datasets` finds by name (or folder), as name[:config[:split]], split train."""

    def __init__(self, name: str) -> None:
        import datasets

        self.name = name
        parts = name.split(":")
        if len(parts) > 3 or not all(parts[::2]):
            raise ValueError(f"{name!r}: a dataset is written name, name:config or name:config:split")
        config = parts[1] if len(parts) > 1 and parts[1] else None
        split = parts[2] if len(parts) > 2 else "train"
        try:
            self.dataset = datasets.load_dataset(parts[0], config, split=split)
        except Exception as error:  # `datasets` raises its own, httpx's and the hub's errors
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise FileNotFoundError(
                f"{name!r} is neither 'demo', nor a file or glob of {' '.join(SUFFIXES)} that exists, nor "
                f"a dataset "
                f"that can be loaded: {reason}"
            ) from error

    def key(self) -> str:
        return hashlib.blake2b(str(self.dataset._fingerprint).encode(), digest_size=16).hexdigest()

    def records(self, columns: Sequence[str]) -> Iterator[Place]:
        for column in columns:
            if column not in self.dataset.column_names:
                listed = ", ".join(self.dataset.column_names)
                raise ValueError(f"{self.name}: has no column {column!r}; its columns are {listed}")
        for number, record in enumerate(self.dataset.select_columns(list(columns)), start=1):
            yield f"{self.name} row {number}", record


def open_source(name: str) -> Source:
    """The source that ``data.train`` names.

    Raises ``FileNotFoundError`` for what does not exist and ``ValueError`` for what cannot be read.
    """
    if name == "demo":
        from longspan.data.demo import Demo

        return Demo()
    path = Path(name).expanduser()
    if path.is_file():
        return Files(name, [path])
    if any(mark in name for mark in "*?["):
        found = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
        if not found:
            raise FileNotFoundError(f"no file matches {name!r} in {Path.cwd()}")
        return Files(name, found)
    if path.suffix in SUFFIXES or (name.startswith(("/", "./", "../", "~")) and not path.is_dir()):
        raise FileNotFoundError(f"there is no file {name!r} in {Path.cwd()}")
    return HubDataset(name)
