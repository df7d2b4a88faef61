"""`longspan plan`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from longspan.cli.main import app
from longspan.cli.plan import binary


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["plan", *map(str, arguments)])


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe of a model that is a config and nothing else."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 128}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **sizes, **heads}))
    path = tmp_path / "recipe.yaml"
    path.write_text(f"model: {tmp_path}\ndata: {{length: 256}}\n")
    return path


def test_it_prints_and_writes_the_plan(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "plan.json"
    done = run(recipe, "--memory", "64MiB", "--device", "cpu", "--json", out)
    assert done.exit_code == 0, done.output
    for text in ("weights", "saved: attention", "longest rows that fit", "memory.recompute: layer", "64.00 MiB"):
        assert text in done.output
    data = json.loads(out.read_text())
    assert data["budget_bytes"] == 64 << 20
    assert data["peak_bytes"] == sum(data["parts_bytes"].values()) == max(data["segments_bytes"].values())
    assert data["largest_length"] % 64 == 0
    assert data["choices"][0]["peak_bytes"] == data["peak_bytes"]


def test_options(recipe: Path) -> None:
    done = run(
        recipe, "--memory", "1kB", "--length", 512, "--set", "trainer.batch=2", "--device", "cuda", "--no-compare"
    )
    assert done.exit_code == 0, done.output
    assert "2 x 512 tokens" in done.output
    assert "cuda" in done.output
    assert "none" in done.output
    assert "memory.recompute: layer" not in done.output


def test_auto_is_settled(recipe: Path) -> None:
    done = run(recipe, "--memory", "1GB", "--set", "memory.recompute=auto", "--no-compare")
    assert "recompute none" in done.output


def test_mistakes_are_one_line(recipe: Path) -> None:
    for arguments, message in (
        (("--memory", "lots"), "--memory must be a size like 24GiB, 8GB or 512MiB, or a number of bytes, not 'lots'"),
        (("--set", "memory.recompute=auto", "--memory", "1kB"), "memory.recompute auto: no choice fits"),
        (("--set", "model=./nowhere"), "model folder './nowhere' does not exist"),
    ):
        done = run(recipe, *arguments)
        assert done.exit_code == 2
        assert message in done.output.replace("\n", " ")


def test_sizes() -> None:
    assert [binary(n) for n in (512, 3 << 20, 5 << 30)] == ["0.5 KiB", "3.00 MiB", "5.00 GiB"]
