"""Predictors, thresholds and pictures of token elimination on a tiny model, through the command line too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from longspan.analysis import predictors, recall, thresholds
from longspan.analysis.layers import Subject, bare, subject_of
from longspan.analysis.predictors import Predictor
from longspan.cli.main import app
from longspan.ops import TokenBlocks, predictor_score
from longspan.patch.tokens.predictor_file import PredictorFile, Thresholds, read_predictor, read_thresholds
from longspan.recipe import Recipe
from longspan.train.run import prepare
from tests.train.conftest import write_text, write_tiny_model

BLOCK, LENGTH = 4, 48


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("lemo")
    model, text = write_tiny_model(folder / "model"), write_text(folder / "train.jsonl")
    method = {"method": "lemo", "block": BLOCK, "layers": [0, 1], "keep_ratio": 0.4}
    return {"model": str(model), "data": {"train": str(text), "held_out": 0.2, "length": LENGTH}, "tokens": method}


def load(recipe: Recipe) -> Subject:
    return subject_of(recipe, *prepare(bare(recipe)))


@pytest.fixture(scope="module")
def subject(recipe: dict[str, Any]) -> Subject:
    return load(Recipe.model_validate(recipe))


def trained(subject: Subject, **settings: Any) -> tuple[list[float], PredictorFile]:
    found = list(predictors.train(subject, predictors.Settings(**settings)))
    *progress, file = found
    assert isinstance(file, PredictorFile)
    return [one.loss for one in progress if isinstance(one, predictors.Progress)], file


def test_training_lowers_the_loss_and_finds_the_blocks(subject: Subject) -> None:
    losses, file = trained(subject, steps=200, lr=5e-3, warmup=5, width=64, prune_every=0)
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    before = PredictorFile({n: predictors.untrained(32, n) for n in (0, 1)}, BLOCK, file.hidden, file.count)
    rows = subject.rows(held_out=True)
    found, guess = (recall.mean_recall(subject, rows, one, 4) for one in (file, before))
    assert sum(found.values()) > sum(guess.values()) + 0.2
    assert all(p.grad is None and not p.requires_grad for p in subject.model.parameters())


def test_the_same_again(subject: Subject) -> None:
    first, second = (trained(subject, steps=4, width=16)[1] for _ in range(2))
    for number, weights in first.layers.items():
        assert all(torch.equal(a, b) for a, b in zip(weights.tensors, second.layers[number].tensors, strict=True))


def scores(predictor: Predictor, x: Tensor) -> Tensor:
    return predictor_score(x, predictor.weights, TokenBlocks.even(1, len(x), BLOCK))


def test_pruning_takes_silent_units_and_changes_nothing_else() -> None:
    predictor = Predictor(0, 16, 12)
    x = torch.rand(40, 16)
    with torch.no_grad():
        predictor.weights.query[1][5:9] = -1.0  # silent behind activations that are not negative
        predictor.weights.key[1][2] = 0.0
    blocks = TokenBlocks.even(1, 40, BLOCK)
    lesson = predictors.Lesson(x, torch.rand(1, 10, 10), blocks)
    for _ in range(3):
        predictor.learn(lesson, 0.0)
    before = scores(predictor, x)
    silent = [int((zeros == predictor.blocks).sum()) for zeros in predictor.zeros]
    assert silent[0] >= 4
    assert silent[1] >= 1
    widths = predictor.widths
    predictor.prune(1.0)
    assert [a - b for a, b in zip(widths, predictor.widths, strict=True)] == silent
    torch.testing.assert_close(scores(predictor, x), before, rtol=1e-5, atol=1e-6)
    predictor.learn(lesson, 1e-3)  # the optimizer's state was cut with the weights
    assert all(state["exp_avg"].shape == p.shape for p, state in predictor.optimizer.state.items())


def test_pruning_never_takes_all() -> None:
    predictor = Predictor(0, 16, 12)
    predictor.blocks = 10
    for zeros in predictor.zeros:
        zeros.fill_(10)
    widths = predictor.widths
    predictor.prune(0.5)
    assert predictor.widths == widths


@pytest.mark.parametrize("memory", [1, 3])
def test_steps_learn_from_rows_of_before_again(subject: Subject, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Predictor, predictors.Lesson]] = []  # kept alive, so that no id is used twice
    learn = Predictor.learn

    def watched(self: Predictor, lesson: predictors.Lesson, rate: float) -> float:
        calls.append((self, lesson))
        return learn(self, lesson, rate)

    monkeypatch.setattr(Predictor, "learn", watched)
    trained(subject, steps=6, replays=2, memory=memory, prune_every=0)
    seen = [id(lesson) for predictor, lesson in calls if predictor is calls[0][0]]
    new = seen[::3]
    assert len(seen) == 6 * 3
    assert len(set(new)) == 6
    for step in range(6):
        assert set(seen[3 * step + 1 : 3 * step + 3]) <= set(new[max(0, step + 1 - memory) : step + 1])


def test_orders_count_whatever_level_and_spread() -> None:
    valid = torch.ones(2, 5, 5, dtype=torch.bool)
    valid[1, 3:] = valid[1, :, 3:] = False
    sums = torch.rand(2, 5)
    one = predictors._standard(sums, valid)
    torch.testing.assert_close(one, predictors._standard(sums * 7 + 3, valid))
    assert not one[1, 3:].any()
    torch.testing.assert_close(one[1, :3], predictors._standard(sums[1:, :3], valid[1:, :3, :3])[0])


def test_thresholds_keep_at_least_what_is_asked(subject: Subject, recipe: dict[str, Any], tmp_path: Path) -> None:
    own = load(Recipe.model_validate(recipe))
    found = list(thresholds.search(own, thresholds.Settings(rows=2, cost=5.0, least=0.5, rate=100.0)))
    *layers, result = found
    assert isinstance(result, Thresholds)
    assert [one.number for one in layers if isinstance(one, thresholds.Found)] == [0, 1]
    assert all(0 <= value <= 1 for value in result.layers.values() if value is not None)
    assert all(share >= 0.5 for share in result.kept.values())
    still = thresholds.Settings(rows=2, cost=0.0, rate=0.0)
    stays = list(thresholds.search(load(Recipe.model_validate(recipe)), still))
    first = [one for one in stays if isinstance(one, thresholds.Found)]
    assert all(one.before == one.after for one in first), "a rate of 0 stays at the mean scores"


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["lemo", *arguments])


def test_the_commands(recipe: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    Recipe.model_validate(recipe).to_yaml(path)
    predictor, found, picture = (tmp_path / name for name in ("p.safetensors", "t.json", "kept.png"))
    done = invoke("train-predictor", str(path), "--out", str(predictor), "--steps", "3", "--width", "16", "--rows", "2")
    assert done.exit_code == 0, done.output
    assert "mean recall" in done.output
    about = read_predictor(predictor).about
    assert about["steps"] == 3
    assert set(about["recall"]) == {"0", "1"}
    done = invoke("thresholds", str(path), "--out", str(found), "--rows", "1")
    assert done.exit_code == 0, done.output
    assert read_thresholds(found).count == 2
    done = invoke("inspect", str(path), "--out", str(picture), "--predictor", str(predictor))
    assert done.exit_code == 0, done.output
    assert "recall" in done.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    text = tmp_path / "some.txt"
    text.write_text("the long road of a small river " * 4, encoding="utf-8")
    done = invoke("inspect", str(path), "--out", str(picture), "--text", str(text), "--overwrite")
    assert done.exit_code == 0, done.output

    import longspan

    eliminating = recipe["tokens"] | {"forward": "eliminate", "selector": "predictor", "predictor": str(predictor)}
    by_thresholds = eliminating | {"layers": "thresholds", "thresholds": str(found)}
    for method in (eliminating, by_thresholds):
        output = tmp_path / ("run" + str(len(json.dumps(method))))
        trainer = {"steps": 2, "output": str(output)}
        result = longspan.train(recipe | {"tokens": method, "trainer": trainer}, progress=False)
        assert result.steps == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train-predictor", "{recipe}", "--out", "p.bin"), "must end in .safetensors"),
        (("thresholds", "{recipe}", "--out", "{recipe}"), "must end in .json"),
        (("inspect", "{recipe}", "--out", "{taken}"), "exists; choose another name"),
        (("inspect", "{recipe}", "--out", "x.png", "--predictor", "none.safetensors"), "is no file"),
        (("thresholds", "{recipe}", "--out", "x.json", "--set", "data.held_out=0"), "data.held_out is 0"),
        (("train-predictor", "{recipe}", "--out", "x.safetensors", "--set", "tokens.layers=[7]"), "layers 0 to 1"),
    ],
)
def test_mistakes_are_one_line(
    arguments: tuple[str, ...], message: str, recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path, taken = tmp_path / "recipe.yaml", tmp_path / "taken.png"
    Recipe.model_validate(recipe).to_yaml(path)
    taken.write_bytes(b"mine")
    done = invoke(*(one.format(recipe=path, taken=taken) for one in arguments))
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())
    assert taken.read_bytes() == b"mine"
