"""Tokenised documents on disk: tokenised once per content, tokenizer and format, memory-mapped afterwards."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longspan import folders
from longspan.data.formats import KEYS, Encoder, check_record
from longspan.data.sources import Source

DEFAULT_CACHE = Path("~/.cache/longspan")
LAYOUT = 1  # part of the key: raise it when what is stored changes
_BATCH = 64  # documents tokenised at once

logger = logging.getLogger(__name__)


class TokenStore:
    """Documents as token ids; reads what `open_store` wrote. Picklable, maps its files on first use.

    ``offsets`` int64 [documents + 1]; ``ids`` int32 [tokens]; ``marks`` uint8 [tokens] (1 = a label) or
    None where every token is a label; ``digests`` uint8 [documents, 16], the hash of each record.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder, self.about = folder, dict(about)
        self._arrays: dict[str, NDArray[Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "about": self.about, "_arrays": {}}

    def _array(self, name: str) -> NDArray[Any]:
        if name not in self._arrays:
            path = self.folder / f"{name}.npy"
            empty_maps_fail = path.stat().st_size <= 128
            self._arrays[name] = np.load(path, mmap_mode=None if empty_maps_fail else "r", allow_pickle=False)
        return self._arrays[name]

    @property
    def offsets(self) -> NDArray[np.int64]:
        return self._array("offsets")

    @property
    def ids(self) -> NDArray[np.int32]:
        return self._array("ids")

    @property
    def marks(self) -> NDArray[np.uint8] | None:
        return self._array("marks") if self.about["marks"] else None

    @property
    def digests(self) -> NDArray[np.uint8]:
        return self._array("digests")

    def __len__(self) -> int:
        return int(self.about["documents"])


class _ArrayFile:
    """A .npy file that grows: the header (always 128 bytes for one dimension) is written when the length
    is known.
    """

    _HEADER = 128

    def __init__(self, path: Path, dtype: Any) -> None:
        self.dtype, self.length = np.dtype(dtype), 0
        self.file = path.open("wb")
        self.file.write(b"\0" * self._HEADER)

    def append(self, values: Any) -> None:
        array = np.asarray(values, dtype=self.dtype)
        array.tofile(self.file)
        self.length += array.size

    def __enter__(self) -> _ArrayFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        with self.file:
            if kind is None:
                self.file.seek(0)
                form = np.lib.format.dtype_to_descr(self.dtype)
                header = {"descr": form, "fortran_order": False, "shape": (self.length,)}
                np.lib.format.write_array_header_1_0(self.file, header)
                if self.file.tell() != self._HEADER:
                    raise OSError(f"{self.file.name}: the array header took {self.file.tell()} bytes, not 128")


def tokenizer_key(tokenizer: Any) -> str:
    """Hash of everything in a tokenizer that changes what it makes of a text."""
    digest = hashlib.blake2b(type(tokenizer).__name__.encode(), digest_size=16)
    if getattr(tokenizer, "is_fast", False):
        digest.update(tokenizer.backend_tokenizer.to_str().encode())
    else:
        digest.update(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode())
    own = [tokenizer.eos_token_id, tokenizer.bos_token_id, str(getattr(tokenizer, "chat_template", None))]
    own += [getattr(tokenizer, name, None) for name in ("add_bos_token", "add_eos_token")]
    digest.update(json.dumps(own).encode())
    return digest.hexdigest()


def open_store(source: Source, form: str, tokenizer: Any, cache_dir: str | Path | None = None) -> TokenStore:
    """The tokenised ``source``, out of the cache (default ~/.cache/longspan) or written to it.

    A damaged entry is named in a warning and written again. Raises ``ValueError`` for bad records and
    ``OSError`` when the cache cannot be written; nothing half written is left.
    """
    encoder = Encoder(tokenizer, form)
    parts = json.dumps([LAYOUT, form, source.key(), tokenizer_key(tokenizer)])
    key = hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()
    root = Path(cache_dir if cache_dir is not None else DEFAULT_CACHE).expanduser() / "tokens"
    folder = root / key
    with folders.locked(root, wait=True, purpose="tokenising"):
        folders.clean_staging(root)
        if folder.exists():
            try:
                return TokenStore(folder, folders.verify(folder))
            except folders.BrokenFolderError as error:
                logger.warning("the token cache is damaged and is written again: %s", error)
                folders.discard(folder)
        about: dict[str, Any] = {"source": source.name, "format": form}
        with folders.staged(folder, about=about) as staging:
            about.update(_tokenise(source, form, encoder, staging))
        return TokenStore(folder, about)


def _batches(source: Source, form: str) -> Iterator[tuple[list[str], list[dict[str, Any]]]]:
    places: list[str] = []
    records: list[dict[str, Any]] = []
    for where, record in source.records(KEYS[form]):
        places.append(where)
        records.append(check_record(record, form, where))
        if len(places) == _BATCH:
            yield places, records
            places, records = [], []
    if places:
        yield places, records


def _tokenise(source: Source, form: str, encoder: Encoder, folder: Path) -> dict[str, Any]:
    offsets, digests = [0], bytearray()
    largest, largest_at = -1, ""
    with (
        _ArrayFile(folder / "ids.npy", np.int32) as ids_file,
        _ArrayFile(folder / "marks.npy", np.uint8) as marks_file,
    ):
        for places, records in _batches(source, form):
            for record in records:
                text = json.dumps(record, sort_keys=True, ensure_ascii=True)
                digests += hashlib.blake2b(text.encode(), digest_size=16).digest()
            for where, (ids, marks) in zip(places, encoder.encode(records, places), strict=True):
                ids_file.append(ids)
                if marks is not None:
                    marks_file.append(marks)
                offsets.append(offsets[-1] + len(ids))
                if max(ids) > largest:
                    largest, largest_at = max(ids), where
    if len(offsets) == 1:
        raise ValueError(f"{source.name!r} holds no records")
    if form == "text":
        (folder / "marks.npy").unlink()
    np.save(folder / "offsets.npy", np.asarray(offsets, dtype=np.int64), allow_pickle=False)
    np.save(folder / "digests.npy", np.frombuffer(digests, np.uint8).reshape(-1, 16), allow_pickle=False)
    return {
        "documents": len(offsets) - 1,
        "tokens": offsets[-1],
        "marks": form != "text",
        "largest_id": largest,
        "largest_id_at": largest_at,
    }
