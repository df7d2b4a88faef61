"""Rows hold every token once, in order, with exact boundaries, and depend on content and seed alone."""

from __future__ import annotations

import json
import pickle
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longspan.data import build, collate, demo
from longspan.data.config import DataConfig
from longspan.data.rows import Rows

texts = st.lists(
    st.text(st.sampled_from("the user.\n"), max_size=150).map(lambda text: f"a{text}"), min_size=2, max_size=9
)


def write(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def config(path: Path, **changes: Any) -> DataConfig:
    return DataConfig.model_validate({"train": str(path), "length": 24, "held_out": 0, **changes})


def pieces(rows: Rows) -> list[tuple[int, ...]]:
    """Every piece of every row."""
    found = []
    for row in (rows[index] for index in range(len(rows))):
        at = 0
        for size in row["doc_lengths"]:
            found.append(tuple(row["input_ids"][at : at + size]))
            at += size
        assert at == len(row["input_ids"]) == len(row["labels"])
    return found


def make_conversations(count: int) -> list[Any]:
    draw = random.Random(1)
    say = lambda: "the user asks " * draw.randint(1, 12)  # noqa: E731 - a name for two calls
    return [
        {"messages": [{"role": "user", "content": say()}, {"role": "assistant", "content": say()}]}
        for _ in range(count)
    ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(texts)
@pytest.mark.parametrize("packing", ["documents", "none"])
def test_no_token_of_a_text_is_lost(chat_tokenizer: Any, tmp_path: Path, packing: str, given_texts: list[str]) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": text} for text in given_texts])
    rows = build(config(path, packing=packing), chat_tokenizer, cache_dir=tmp_path).train
    assert rows.stats.left_out == 0
    joined = Counter(tuple(document) for document in rows.documents())
    assert sum(len(document) * count for document, count in joined.items()) == rows.stats.tokens
    found = Counter(pieces(rows))
    # Every document is its pieces in order: take them back out of the rows, and nothing must remain.
    for document in rows.documents():
        at = 0
        while at < len(document):
            sizes = [size for size in range(24, 0, -1) if found[tuple(document[at : at + size])] > 0]
            assert sizes, "a piece of a document is in no row"
            size = next((size for size in sizes if len(document) - at - size != 1), sizes[0])
            found[tuple(document[at : at + size])] -= 1
            at += size
    assert not +found
    for index in range(len(rows)):
        row = rows[index]
        assert len(row["input_ids"]) <= 24
        assert row["labels"] == row["input_ids"]
        assert packing == "documents" or len(row["doc_lengths"]) == 1


def test_labels_of_conversations_survive_cutting_and_packing(chat_tokenizer: Any, tmp_path: Path) -> None:
    from longspan.data.formats import Encoder

    records = make_conversations(30)
    path = write(tmp_path / "a.jsonl", records)
    rows = build(config(path, format="messages"), chat_tokenizer, cache_dir=tmp_path).train
    wanted: Counter[int] = Counter()
    for ids, marks in Encoder(chat_tokenizer, "messages").encode(records, [""] * 30):
        assert marks is not None
        wanted.update(token for token, mark in zip(ids, marks, strict=True) if mark)
    got = Counter(label for index in range(len(rows)) for label in rows[index]["labels"] if label != -100)
    assert got <= wanted
    assert rows.stats.left_out > 0, "some pieces of long questions hold no label"
    assert sum((wanted - got).values()) <= rows.stats.left_out, (
        "a left-out piece may hold a label in its first token only"
    )
    for index in range(len(rows)):
        assert any(label != -100 for label in collate([rows[index]])["labels"][0].tolist())


@pytest.mark.parametrize("packing", ["documents", "none"])
def test_a_piece_whose_only_label_comes_first_is_left_out(chat_tokenizer: Any, tmp_path: Path, packing: str) -> None:
    """The end of turn falls on the first token of the second piece, where nothing precedes it."""
    for size in range(60):
        messages = [{"role": "user", "content": "é" * size}, {"role": "assistant", "content": "a"}]
        if len(chat_tokenizer.apply_chat_template(messages)["input_ids"]) == 34:
            break
    path = write(tmp_path / "a.jsonl", [{"messages": messages}])
    rows = build(config(path, format="messages", length=32, packing=packing), chat_tokenizer, cache_dir=tmp_path).train
    (ids,) = rows.documents()
    assert len(ids) == 34
    assert chat_tokenizer.decode(ids[32:]) == "</s>\n"
    assert (len(rows), rows.stats.left_out) == (1, 1)


def test_the_same_seed_gives_the_same_rows_and_another_another_order(chat_tokenizer: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": f"{number} the user " * 9} for number in range(20)])

    def rows(seed: int, cache: str) -> list[Any]:
        train = build(config(path, packing="none"), chat_tokenizer, seed, cache_dir=tmp_path / cache).train
        return [train[index] for index in range(len(train))]

    assert rows(3, "one") == rows(3, "one") == rows(3, "two")
    assert rows(3, "one") != rows(4, "one")
    assert sorted(map(str, rows(3, "one"))) == sorted(map(str, rows(4, "one")))


def test_the_split_follows_from_content_alone(chat_tokenizer: Any, tmp_path: Path) -> None:
    records = [{"text": f"{number} the user asks"} for number in range(40)]
    records += records[:10]
    shuffled = random.Random(0).sample(records, len(records))

    def split(order: list[Any], seed: int) -> tuple[set[tuple[int, ...]], set[tuple[int, ...]]]:
        path = write(tmp_path / "a.jsonl", order)
        built = build(config(path, held_out=0.25), chat_tokenizer, seed, cache_dir=tmp_path)
        assert built.held_out is not None
        return tuple({tuple(text) for text in part.documents()} for part in built)

    train, held = split(records, 0)
    assert (train, held) == split(shuffled, 5)
    assert not train & held, "copies of a document stay together"
    assert len(held) == 10
    assert len(train) == 30


def test_rows_can_be_pickled_and_indexed_like_a_list(chat_tokenizer: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "the user " * 30} for _ in range(3)])
    rows = build(config(path), chat_tokenizer, cache_dir=tmp_path).train
    copy = pickle.loads(pickle.dumps(rows))
    assert [copy[i] for i in range(len(copy))] == [rows[i] for i in range(len(rows))]
    assert rows[-1] == rows[len(rows) - 1]
    for outside in (len(rows), -len(rows) - 1):
        with pytest.raises(IndexError, match=f"row {outside} of {len(rows)}"):
            rows[outside]


def test_a_held_out_file_is_read_whole(chat_tokenizer: Any, tmp_path: Path) -> None:
    train = write(tmp_path / "a.jsonl", [{"text": "the user"}])
    held = write(tmp_path / "b.jsonl", [{"text": "the assistant"}, {"text": "answers"}])
    built = build(config(train, held_out=str(held)), chat_tokenizer, cache_dir=tmp_path)
    assert built.held_out is not None
    assert (built.train.stats.documents, built.held_out.stats.documents) == (1, 2)


def test_rows_of_the_demo_are_equal_when_they_are_not_packed(
    chat_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = demo.documents()[::40]
    monkeypatch.setattr(demo, "documents", lambda: few)
    built = build(DataConfig(train="demo", length=512, packing="none"), chat_tokenizer, cache_dir=tmp_path)
    assert built.held_out is not None
    for part in built:
        assert {len(part[index]["input_ids"]) for index in range(len(part))} == {512}
    assert built.train.stats.tokens == 512 * len(built.train)
    ragged = build(DataConfig(train="demo", length=512), chat_tokenizer, cache_dir=tmp_path).train
    assert ragged.stats.tokens == sum(len(document) for document in ragged.documents())


def test_a_batch_has_exact_boundaries() -> None:
    rows = [
        {"input_ids": [5, 6, 7], "labels": [5, -100, 7], "doc_lengths": [1, 2]},
        {"input_ids": [8, 9], "labels": [8, 9], "doc_lengths": [2]},
    ]
    batch = collate(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert batch["labels"].tolist() == [[-100, -100, 7, -100, 9]]
    assert batch["position_ids"].tolist() == [[0, 0, 1, 0, 1]]
    assert batch["cu_seq_lens_q"].tolist() == batch["cu_seq_lens_k"].tolist() == [0, 1, 3, 5]
    assert batch["max_length_q"] == batch["max_length_k"] == 2
    assert {str(batch[name].dtype) for name in ("cu_seq_lens_q", "cu_seq_lens_k")} == {"torch.int32"}
    assert {str(batch[name].dtype) for name in ("input_ids", "labels", "position_ids")} == {"torch.int64"}
    assert rows[0]["labels"] == [5, -100, 7], "the rows are not changed"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "collate needs at least one row"),
        (
            [{"input_ids": [1, 2], "labels": [1, 2], "doc_lengths": [1]}],
            "row 0: 2 input_ids, 2 labels and doc_lengths [1] (sum 1) must agree, and each document needs a token",
        ),
        (
            [{"input_ids": [1], "labels": [1], "doc_lengths": [1, 0]}],
            "row 0: 1 input_ids, 1 labels and doc_lengths [1, 0] (sum 1) must agree, and each document needs a token",
        ),
    ],
)
def test_rows_that_disagree_are_refused(rows: list[Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        collate(rows)
    assert str(caught.value) == message
