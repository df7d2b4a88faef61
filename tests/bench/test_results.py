"""The results page is that of the records, and every row of it says how to measure it again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench.record import ROOT
from bench.results.__main__ import draw, pages, sections
from bench.results.kernels import tables
from bench.results.tables import Column, Table, fixed

DOCS = ROOT / "docs"


def test_the_page_is_that_of_the_records() -> None:
    found = sections()
    for name, text in pages(found).items():
        assert (DOCS / name).read_text(encoding="utf-8") == text, "run `make results`"
    data = {heading: [table.data() for table in each] for heading, each in found.items()}
    assert json.loads((DOCS / "results.json").read_text(encoding="utf-8")) == json.loads(json.dumps(data))


def test_every_command_runs_something_that_exists() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for each in sections().values():
        for table in each:
            words = table.command.split()
            if words[0] == "make":
                assert words[1] in targets
            elif "pytest" in words:
                assert all((ROOT / word).is_file() for word in words if word.endswith(".py"))
            else:
                file, parts = ROOT / (words[2].replace(".", "/") + ".py"), words[3:]
                text = file.read_text(encoding="utf-8")
                assert all(part.startswith("-") or part.isdigit() or f'"{part}"' in text for part in parts), table


def test_every_record_is_on_the_page() -> None:
    titles = [table for each in sections().values() for table in each]
    for path in (ROOT / "bench" / "records").glob("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        parts = [part for part, value in record.items() if isinstance(value, dict) and "result" in value]
        for part in parts:
            if (path.stem, part) != ("lean_layers", "curve"):  # a line for each of 30 steps
                assert any(table.command == f"python -m bench.{path.stem} {part}" for table in titles), (
                    path.stem,
                    part,
                )


def test_a_figure_that_is_missing_is_an_empty_cell() -> None:
    environment = {"device": "a", "threads": 2, "isa": "b", "torch": "c", "commit": "d"}
    column = Column("x", "an x", fixed(1))
    table = Table("A", "note", "make demo", (column,), {"one": {"x": 2.0}, "two": {}}, environment)
    assert "| one | 2.0 |\n| two |  |" in table.markdown()
    assert table.data()["rows"]["two"] == {"x": None}


def row(key: str) -> dict[str, Any]:
    return {
        "key": key,
        "impl": "longspan.ops",
        "mode": "fwd",
        "time_s": {"median": 1.0},
        "env": {"device": "a", "threads": 2},
    }


def test_a_kernel_without_a_family_is_not_left_out() -> None:
    with pytest.raises(ValueError, match="no family for"):
        tables([row("unheard_of|cpu|float32|T=1")])


def test_plots_are_drawn(tmp_path: Path) -> None:
    draw(sections(), tmp_path)
    for name in ("steps", "kernels", "memory"):
        for kind in ("png", "svg"):
            assert (tmp_path / f"{name}.{kind}").stat().st_size > 1000
