"""`longspan spt inspect` on a tiny model: figures, table, picture, and what a trained run brings with it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from longspan.analysis import layers, spt
from longspan.cli.main import app
from longspan.nn.codebook import Codebook
from longspan.recipe import Recipe
from longspan.train.run import look, prepare, train
from tests.train.conftest import write_text, write_tiny_model

PQ = {"method": "pq", "codewords": 4, "keep_ratio": 0.25, "sinks": 1}
ROUTED = {"method": "routed", "blocks": 4, "active": 2}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("spt")
    model, text = write_tiny_model(folder / "model"), write_text(folder / "train.jsonl")
    return {
        "model": str(model),
        "data": {"train": str(text), "held_out": 0.2, "length": 96},
        "attention": {"train": PQ},
        "ffn": {"train": ROUTED},
        "trainer": {"steps": 3, "output": str(folder / "run")},
    }


@pytest.mark.parametrize(
    "changes", [{}, {"attention.train": PQ | {"form": "block"}}, {"attention.train": {"method": "full"}}]
)
def test_figures(recipe: dict[str, Any], changes: dict[str, Any]) -> None:
    wanted = spt.inspected(Recipe.model_validate(recipe).replace(changes))
    model, tokenizer = prepare(wanted)
    look(model, layers.rows_of(wanted, model, tokenizer), wanted)
    found = spt.inspect(model, wanted, layers.rows_of(wanted, model, tokenizer, held_out=True)[0])
    assert list(found) == [0, 1]
    for layer in found.values():
        assert layer.load is not None
        assert sum(layer.load) == pytest.approx(4)
        assert layer.load == sorted(layer.load, reverse=True)
        if wanted.attention.train.method == "full":
            assert layer.kept is None
            continue
        assert layer.kept is not None
        assert 0 < layer.kept.mass <= layer.kept.best + 1e-6 <= 1 + 2e-6 or layer.kept.mass != layer.kept.mass
        assert 0 <= (layer.entropy or 0) <= 1


def test_nothing_to_inspect(recipe: dict[str, Any]) -> None:
    plain = {key: value for key, value in recipe.items() if key not in ("attention", "ffn")}
    with pytest.raises(ValueError, match=r"neither attention.train is pq nor ffn.train routed"):
        spt.inspected(Recipe.model_validate(plain))


def _run(arguments: list[str]) -> str:
    result = CliRunner().invoke(app, ["spt", "inspect", *arguments], env={"COLUMNS": "200"})
    if result.exit_code not in (0, 2) and result.exception is not None:
        raise result.exception
    return result.output


def test_command(recipe: dict[str, Any], tmp_path: Path) -> None:
    path, picture = tmp_path / "recipe.yaml", tmp_path / "kept.png"
    Recipe.model_validate(recipe).to_yaml(path)
    text = tmp_path / "text.txt"
    text.write_text("the long road of a small river " * 20, encoding="utf-8")
    said = _run([str(path), "--out", str(picture), "--text", str(text)])
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert len(re.findall(r"^│\s+[01]\s", said, re.MULTILINE)) == 2
    assert "mean" in said
    assert "exists; choose another name" in _run([str(path), "--out", str(picture)])
    result = train(recipe, progress=False)
    other = tmp_path / "trained.png"
    assert "drawn to" in _run([str(path), "--out", str(other), "--trained", str(result.output)])
    wanted = spt.inspected(Recipe.model_validate(recipe))
    model, _ = prepare(wanted)
    assert not any(book.fitted for book in model.modules() if isinstance(book, Codebook))
    from longspan.train import weights

    weights.load(model, result.final, wanted)
    books = [book for book in model.modules() if isinstance(book, Codebook)]
    assert all(book.fitted for book in books)
    assert all(bool(torch.isfinite(book.weight).all()) for book in books)
