"""The bench's own arithmetic: records, comparison, visible pairs, and the figures it divides by."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import attention as rows
from bench import compare, plot, race
from bench.__main__ import main
from bench.record import Baseline, Gate, Record, Times, append, environment, read
from longspan.ops import AttentionPattern
from longspan.ops.reference.attention import visible


def written(path: Path, seconds: float, *, spread: float = 0.01, passed: bool = True, dirty: bool = False) -> Path:
    times = Times(seconds, seconds * (1 - spread), seconds * (1 + spread), seconds * (1 - spread), 5)
    record = Record("attention_fwd|cpu|float32|T=8", "longspan.ops", "fwd", Gate(passed, 1e-7, 1e-7), times)
    record.flops, record.of_roofline = 1e9, 0.5
    record.baselines = {"sdpa": Baseline(0.3, 1.5)}
    record.env = environment(2) | {"dirty": dirty}
    append(record, path)
    return path


def test_records_are_appended_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "records" / "r.jsonl"
    for seconds in (1.0, 2.0):
        written(path, seconds)
    found = read(path)
    assert [row["time_s"]["median"] for row in found] == [1.0, 2.0]
    assert {"longspan", "commit", "dirty", "torch", "device", "threads", "isa", "compiler"} <= found[0]["env"].keys()
    assert found[0]["utc"].endswith("Z")


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "r.jsonl:2: not JSON"), ('{"schema": 99, "key": "x"}', "r.jsonl:2: not a benchmark record of schema 1")],
)
def test_a_malformed_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path / "r.jsonl", 1.0)
    path.write_text(path.read_text() + text + "\n")
    with pytest.raises(ValueError, match=message):
        read(path)


def test_statistics_of_rounds() -> None:
    times = Times.of([5.0, 1.0, 3.0, 2.0, 4.0, 6.0])
    assert (times.median, times.p20, times.p80, times.min, times.rounds) == (3.5, 2.0, 5.0, 1.0, 6)
    with pytest.raises(ValueError, match="no rounds"):
        Times.of([])


@pytest.mark.parametrize(
    ("new", "spread", "code"),
    [(1.0, 0.01, 0), (1.05, 0.01, 0), (1.5, 0.01, 1), (1.5, 0.6, 0), (0.5, 0.01, 0)],
    ids=["equal", "within the loss", "slower", "slower but overlapping", "faster"],
)
def test_comparison_exits_on_a_real_loss(tmp_path: Path, new: float, spread: float, code: int) -> None:
    a, b = written(tmp_path / "a.jsonl", 1.0), written(tmp_path / "b.jsonl", new, spread=spread)
    assert main(["--compare", str(a), str(b), "--loss", "0.1"]) == code


def test_comparison_refuses_red_rows_and_says_dirty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, red = written(tmp_path / "a.jsonl", 1.0), written(tmp_path / "b.jsonl", 1.0, passed=False)
    for pair in ((good, red), (red, good)):
        with pytest.raises(ValueError, match="correctness check failed: attention_fwd"):
            main(["--compare", *map(str, pair)])
    dirty = written(tmp_path / "c.jsonl", 1.0, dirty=True)
    assert main(["--compare", str(good), str(dirty)]) == 0
    assert "dirty:" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="no benchmark records at"):
        main(["--compare", str(good), str(tmp_path / "none.jsonl")])


def test_rows_of_other_machines_are_not_joined(tmp_path: Path) -> None:
    here = read(written(tmp_path / "a.jsonl", 1.0))
    there: list[dict[str, Any]] = json.loads(json.dumps(here))
    there[0]["env"]["device"] = "another processor"
    with pytest.raises(ValueError, match="share no row"):
        compare.join(here, there)


def test_plot_is_written(tmp_path: Path) -> None:
    image = plot.plot(read(written(tmp_path / "a.jsonl", 1.0)), tmp_path / "plots" / "bench.png")
    assert image.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "pattern",
    [
        AttentionPattern.full(),
        AttentionPattern.window(7),
        AttentionPattern.window(7, sinks=3),
        AttentionPattern.s2(group_size=10),
        AttentionPattern.s2(group_size=10, sinks=4),
        AttentionPattern.window(1000),
    ],
    ids=str,
)
@pytest.mark.parametrize("heads", [1, 3, 4])
def test_visible_pairs_match_the_mask(pattern: AttentionPattern, heads: int) -> None:
    for tokens in (1, 9, 64):
        assert rows.visible_pairs(pattern, heads, tokens) == int(visible(pattern, heads, tokens, tokens).sum())


def test_gate_is_green_and_can_be_red(monkeypatch: pytest.MonkeyPatch) -> None:
    shape, pattern = rows.Shape(200, D=16), AttentionPattern.s2(group_size=64)
    assert rows.gate(shape, pattern, 2).passed
    right = rows.Inputs.pybind
    monkeypatch.setattr(rows.Inputs, "pybind", lambda self: tuple(x * (1 + 1e-4) for x in right(self)))
    assert not rows.gate(shape, pattern, 2).passed


def test_memory_formula_of_attention() -> None:
    found = rows.memory(rows.Inputs(rows.Shape(16384), AttentionPattern.window(64), 2))
    assert found["predicted_bytes"] <= found["peak_live_bytes"] <= 1.05 * found["predicted_bytes"]


def test_exponent_of_a_power() -> None:
    sizes = [4096, 8192, 16384]
    assert race.exponent(sizes, [3.0 * s**1.5 for s in sizes]) == pytest.approx(1.5)


def test_ratio_is_taken_within_rounds() -> None:
    # The machine is three times slower in the last two rounds; the quotient does not see it.
    found = race.Race({"ours": [1.0, 1.0, 3.0, 3.0], "theirs": [2.0, 2.0, 6.0, 6.0]})
    assert found.ratio("theirs", "ours") == 2.0


def test_command_line_is_described(root: Path) -> None:
    command = [sys.executable, "-m", "longspan.cli.main", "bench", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "--compare OLD NEW" in done.stdout
