"""Every kind of source gives the same documents; every kind of bad input gives one exact error."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from longspan.data import build, demo
from longspan.data.config import DataConfig
from longspan.data.sources import open_source

TEXTS = ["the user asks", "the assistant answers", "def main(argv): return 0"]


def as_jsonl(folder: Path) -> str:
    lines = [json.dumps({"text": text, "id": 3}) for text in TEXTS]
    (folder / "a.jsonl").write_text(lines[0] + "\n\n" + lines[1] + "\n")
    (folder / "b.jsonl").write_text(lines[2])
    return str(folder / "*.jsonl")


def as_text(folder: Path) -> str:
    for index, text in enumerate(TEXTS):
        (folder / f"{index}.txt").write_text(text)
    return str(folder / "[0-9].txt")


def as_parquet(folder: Path) -> str:
    table = pyarrow.table({"other": [1, 2, 3], "text": TEXTS})
    pyarrow.parquet.write_table(table, folder / "a.parquet", row_group_size=2)
    return str(folder / "a.parquet")


def as_dataset(folder: Path) -> str:
    (folder / "hub").mkdir()
    as_parquet(folder / "hub")
    return str(folder / "hub")


@pytest.mark.parametrize("write", [as_jsonl, as_text, as_parquet, as_dataset])
def test_every_kind_of_source_gives_the_documents(
    tmp_path: Path, chat_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], str]
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    name = write(tmp_path)
    records = [record for _, record in open_source(name).records(["text"])]
    assert [record["text"] for record in records] == TEXTS
    config = DataConfig(train=name, length=16, held_out=0)
    documents = build(config, chat_tokenizer, cache_dir=tmp_path / "cache").train.documents()
    assert [chat_tokenizer.decode(document) for document in documents] == [f"{text}</s>" for text in TEXTS]


def test_the_key_changes_with_the_content_and_not_with_the_name(tmp_path: Path) -> None:
    def key(name: str, content: str) -> str:
        (tmp_path / name).write_text(content)
        return open_source(str(tmp_path / name)).key()

    assert key("a.jsonl", "{}") == key("b.jsonl", "{}") != key("a.jsonl", "{ }")
    assert key("a.txt", "{}") != key("a.jsonl", "{}")


def test_the_demo_is_long_real_and_the_same_each_time() -> None:
    documents = demo.documents()
    names = [name for name, _ in documents]
    assert len(set(names)) == len(names)
    assert names == sorted(names[: names.index("reference/assert")]) + sorted(names[names.index("reference/assert") :])
    assert {"Lib/argparse.py", "Lib/asyncio/events.py", "reference/typesmapping"} <= set(names)
    assert not [name for name in names if {"test", "site-packages", "encodings"} & set(name.split("/"))]
    assert sum(len(record["text"]) for _, record in documents) > 5_000_000
    assert sum(len(record["text"]) > 50_000 for _, record in documents) > 20
    first = demo.Demo().key()
    demo.documents.cache_clear()
    assert demo.Demo().key() == first
    assert "mapping" in demo.reference_text()


def jsonl(folder: Path, *lines: str) -> str:
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder / "data.jsonl")


def table(folder: Path, **columns: list[Any]) -> str:
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "data.parquet")
    return str(folder / "data.parquet")


def raw(folder: Path, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


def folder_of_two(folder: Path) -> str:
    raw(folder, "a.txt", b"x")
    raw(folder, "a.jsonl", b"{}")
    return str(folder / "a.*")


user = '{"role": "user", "content": "the"}'
BAD: list[tuple[str, str, Callable[[Path], str], type[Exception], str]] = [
    ("empty text", "text", lambda f: raw(f, "a.txt", b""), ValueError, "{f}/a.txt is empty"),
    ("empty jsonl", "text", lambda f: raw(f, "a.jsonl", b""), ValueError, "{f}/a.jsonl is empty"),
    ("blank jsonl", "text", lambda f: jsonl(f, "", " "), ValueError, "'{f}/data.jsonl' holds no records"),
    ("no rows", "text", lambda f: table(f, text=[]), ValueError, "'{f}/data.parquet' holds no records"),
    (
        "malformed line",
        "text",
        lambda f: jsonl(f, '{"text": "a"}', '{"text": "a"'),
        ValueError,
        "{f}/data.jsonl line 2: not JSON: Expecting ',' delimiter at column 13",
    ),
    (
        "binary line",
        "text",
        lambda f: raw(f, "a.jsonl", b'{"text": "a"}\n"\xff"\n'),
        ValueError,
        "{f}/a.jsonl line 2: not UTF-8 text: invalid start byte",
    ),
    (
        "binary text",
        "text",
        lambda f: raw(f, "a.txt", b"a\xff"),
        ValueError,
        "{f}/a.txt: not UTF-8 text: invalid start byte at byte 1",
    ),
    (
        "not an object",
        "text",
        lambda f: jsonl(f, "[1]"),
        ValueError,
        "{f}/data.jsonl line 1: must be an object with 'text', not list",
    ),
    (
        "wrong keys",
        "text",
        lambda f: jsonl(f, '{"prompt": "a", "completion": "b"}'),
        ValueError,
        "{f}/data.jsonl line 1: format text needs 'text', the record has 'prompt', 'completion'; "
        "set data.format: prompt_completion",
    ),
    (
        "one key missing",
        "prompt_completion",
        lambda f: jsonl(f, '{"prompt": "a"}'),
        ValueError,
        "{f}/data.jsonl line 1: format prompt_completion needs 'prompt', 'completion', the record has 'prompt'",
    ),
    (
        "no keys",
        "messages",
        lambda f: jsonl(f, "{}"),
        ValueError,
        "{f}/data.jsonl line 1: format messages needs 'messages', the record has no keys at all",
    ),
    (
        "not text",
        "text",
        lambda f: jsonl(f, '{"text": 3}'),
        ValueError,
        "{f}/data.jsonl line 1: 'text' must be text, not int",
    ),
    (
        "empty document",
        "text",
        lambda f: jsonl(f, '{"text": "a"}', '{"text": " "}'),
        ValueError,
        "{f}/data.jsonl line 2: no token to learn from (0 tokens in all); remove the record",
    ),
    (
        "empty completion",
        "prompt_completion",
        lambda f: jsonl(f, '{"prompt": "a", "completion": ""}'),
        ValueError,
        "{f}/data.jsonl line 1: no token to learn from (0 tokens in all); remove the record",
    ),
    (
        "no messages",
        "messages",
        lambda f: jsonl(f, '{"messages": []}'),
        ValueError,
        "{f}/data.jsonl line 1: 'messages' must be a list of {role, content} with at least one entry",
    ),
    (
        "no content",
        "messages",
        lambda f: jsonl(f, '{"messages": [{"role": "user"}]}'),
        ValueError,
        "{f}/data.jsonl line 1: messages[0] must be {role, content} with text in both, not {'role': 'user'}",
    ),
    (
        "no assistant",
        "messages",
        lambda f: jsonl(f, '{"messages": [' + user + "]}"),
        ValueError,
        "{f}/data.jsonl line 1: no message has the role 'assistant', so nothing would be learned",
    ),
    (
        "assistant first",
        "messages",
        lambda f: jsonl(f, '{"messages": [{"role": "assistant", "content": "a"}]}'),
        ValueError,
        "{f}/data.jsonl line 1: the conversation starts with the assistant, so the assistant's words cannot be "
        "located; start with another role or use a chat template with {% generation %} marks",
    ),
    (
        "no column",
        "text",
        lambda f: table(f, body=["a"], title=["b"]),
        ValueError,
        "{f}/data.parquet: has no column 'text'; its columns are body, title",
    ),
    (
        "null in a column",
        "text",
        lambda f: table(f, text=["a", None]),
        ValueError,
        "{f}/data.parquet row 2: 'text' must be text, not NoneType",
    ),
    (
        "not parquet",
        "text",
        lambda f: raw(f, "a.parquet", b"PAR1 nothing"),
        ValueError,
        "{f}/a.parquet: not a Parquet file: ",
    ),
    (
        "unknown ending",
        "text",
        lambda f: raw(f, "a.csv", b"text\n"),
        ValueError,
        "'{f}/a.csv': files ending in '.csv' cannot be read; allowed: .txt .jsonl .parquet",
    ),
    (
        "two kinds",
        "text",
        folder_of_two,
        ValueError,
        "'{f}/a.*' matches files of several kinds (.jsonl, .txt); give one kind",
    ),
    (
        "no match",
        "text",
        lambda f: f"{f}/*.jsonl",
        FileNotFoundError,
        "no file matches '{f}/*.jsonl' in ",
    ),
    ("no file", "text", lambda f: f"{f}/a.jsonl", FileNotFoundError, "there is no file '{f}/a.jsonl' in "),
    ("no path", "text", lambda f: f"{f}/absent", FileNotFoundError, "there is no file '{f}/absent' in "),
    (
        "bad dataset name",
        "text",
        lambda f: "a:b:c:d",
        ValueError,
        "'a:b:c:d': a dataset is written name, name:config or name:config:split",
    ),
]


@pytest.mark.parametrize(("form", "write", "kind", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_data(
    tmp_path: Path,
    chat_tokenizer: Any,
    form: str,
    write: Callable[[Path], str],
    kind: type[Exception],
    message: str,
) -> None:
    name = write(tmp_path)
    config = DataConfig.model_construct(train=name, held_out=0, format=form, length=16, packing="documents")
    with pytest.raises(kind) as caught:
        build(config, chat_tokenizer, cache_dir=tmp_path / "cache")
    expected = message.replace("{f}", str(tmp_path))
    assert str(caught.value).startswith(expected)
    assert str(caught.value) == expected or expected.endswith(" ")
    assert not list((tmp_path / "cache").rglob("*.npy")), "nothing half written stays"


def test_a_dataset_that_cannot_be_loaded_names_what_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, config: str | None, split: str) -> None:
        assert (name, config, split) == ("owner/name", "small", "validation")
        raise ConnectionError("offline\nmore")

    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(FileNotFoundError) as caught:
        open_source("owner/name:small:validation")
    assert str(caught.value) == (
        "'owner/name:small:validation' is neither 'demo', nor a file or glob of .txt .jsonl .parquet that exists, "
        "nor a dataset that can be loaded: offline"
    )


def test_ids_outside_the_vocabulary_name_the_document(tmp_path: Path, chat_tokenizer: Any) -> None:
    config = DataConfig(train=jsonl(tmp_path, '{"text": "a"}', '{"text": "the"}'), length=16, held_out=0)
    largest = max(chat_tokenizer("the")["input_ids"])
    for _ in ("written", "cached"):
        with pytest.raises(ValueError) as caught:
            build(config, chat_tokenizer, vocab_size=largest, cache_dir=tmp_path)
        assert str(caught.value) == (
            f"{tmp_path}/data.jsonl line 2: token id {largest} is outside the vocabulary of {largest} tokens; the "
            "tokenizer does not belong to the model"
        )
    assert len(build(config, chat_tokenizer, vocab_size=largest + 1, cache_dir=tmp_path).train) == 1


def test_too_few_documents_to_hold_one_out(tmp_path: Path, chat_tokenizer: Any) -> None:
    config = DataConfig(train=jsonl(tmp_path, '{"text": "a"}', '{"text": "a"}'), length=16, held_out=0.5)
    with pytest.raises(ValueError, match="holds 1 different document, so none can be held out"):
        build(config, chat_tokenizer, cache_dir=tmp_path)


def test_documents_too_short_for_a_full_row(
    tmp_path: Path, chat_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = tuple((f"{index}", {"text": f"the user {index}"}) for index in range(3))
    monkeypatch.setattr(demo, "documents", lambda: short)
    with pytest.raises(ValueError, match=r"demo gives no row of 4096 tokens: its longest document has . tokens in 3"):
        build(DataConfig(train="demo", held_out=0, packing="none"), chat_tokenizer, cache_dir=tmp_path)


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    from longspan.folders import hash_file

    path = tmp_path / "large"
    path.write_bytes(bytes(range(256)) * 5000)
    assert hash_file(path) == hashlib.sha256(path.read_bytes()).hexdigest()
