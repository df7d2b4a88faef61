"""The token cache: written once per content, tokenizer and format; a damaged entry is named and written again."""

from __future__ import annotations

import errno
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longspan import folders
from longspan.data import store
from longspan.data.sources import open_source
from longspan.data.store import TokenStore, open_store
from tests.chat import make_tokenizer


@pytest.fixture
def source(tmp_path: Path) -> Any:
    path = tmp_path / "data.jsonl"
    records = [{"text": f"the user {n}", "prompt": "the", "completion": f" user {n}"} for n in range(150)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return open_source(str(path))


def content(found: TokenStore) -> list[Any]:
    marks = found.marks
    return [
        found.ids.tolist(),
        found.offsets.tolist(),
        None if marks is None else marks.tolist(),
        found.digests.tolist(),
    ]


def entries(root: Path) -> list[Path]:
    return sorted(path for path in (root / "tokens").iterdir() if path.is_dir())


def test_an_entry_is_read_back_as_it_was_written(
    source: Any, chat_tokenizer: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    first = {form: open_store(source, form, chat_tokenizer, tmp_path) for form in ("text", "prompt_completion")}
    assert len(entries(tmp_path)) == 2
    text = first["text"]
    assert len(text) == 150
    for index in range(150):
        begin, end = text.offsets[index : index + 2]
        assert chat_tokenizer.decode(text.ids[begin:end]) == f"the user {index}</s>"
    monkeypatch.setattr(store, "_tokenise", None)
    for form, found in first.items():
        assert content(open_store(source, form, chat_tokenizer, tmp_path)) == content(found)


def test_arrays_load_without_pickle(source: Any, chat_tokenizer: Any, tmp_path: Path) -> None:
    found = open_store(source, "prompt_completion", chat_tokenizer, tmp_path)
    for name, kind in (("ids", np.int32), ("marks", np.uint8), ("offsets", np.int64), ("digests", np.uint8)):
        assert np.load(found.folder / f"{name}.npy", allow_pickle=False).dtype == kind


def test_another_tokenizer_or_content_is_another_entry(source: Any, chat_tokenizer: Any, tmp_path: Path) -> None:
    open_store(source, "text", chat_tokenizer, tmp_path)
    open_store(source, "text", make_tokenizer(), tmp_path)
    assert len(entries(tmp_path)) == 1, "an equal tokenizer shares the entry"
    other = make_tokenizer()
    other.add_tokens(["the user"])
    open_store(source, "text", other, tmp_path)
    assert len(entries(tmp_path)) == 2
    template = make_tokenizer()
    template.chat_template = "{{ messages }}"
    open_store(source, "text", template, tmp_path)
    assert len(entries(tmp_path)) == 3
    with source.paths[0].open("a") as file:
        file.write('{"text": "more"}\n')
    open_store(source, "text", chat_tokenizer, tmp_path)
    assert len(entries(tmp_path)) == 4


@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_a_damaged_entry_is_named_and_written_again(
    source: Any, chat_tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    first = open_store(source, "text", chat_tokenizer, tmp_path)
    want = content(first)
    path = first.folder / "ids.npy"
    data = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(data[:-4] if damage == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    with caplog.at_level(logging.WARNING):
        assert content(open_store(source, "text", chat_tokenizer, tmp_path)) == want
    assert "the token cache is damaged and is written again" in caplog.text
    assert "ids.npy" in caplog.text
    assert len(entries(tmp_path)) == 1


def test_a_full_disk_leaves_nothing_behind(
    source: Any, chat_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, values: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(store._ArrayFile, "append", full)
        with pytest.raises(folders.SaveError, match="No space left on device"):
            open_store(source, "text", chat_tokenizer, tmp_path)
    assert entries(tmp_path) == []
    assert len(open_store(source, "text", chat_tokenizer, tmp_path)) == 150


def test_growing_arrays_equal_numpys_own_files(tmp_path: Path) -> None:
    values = np.arange(1000, dtype=np.int32)
    with store._ArrayFile(tmp_path / "ours.npy", np.int32) as file:
        for part in np.split(values, [0, 1, 300, 999]):
            file.append(part.tolist())
    np.save(tmp_path / "numpys.npy", values)
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "numpys.npy").read_bytes()
