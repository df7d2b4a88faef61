"""`memory: {recompute: auto, budget}`: the least recomputation that fits, in a plan and in a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from longspan import patch, plan
from longspan.recipe import Recipe
from longspan.train import checkpoint, memory
from longspan.train.planning import settle, subject_of
from longspan.train.run import log_of, train
from tests.patch.families import build
from tests.train.conftest import write_text, write_tiny_model

ORDER = ("none", "mlp", "mlp+qkv", "layer")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and a text, in one folder."""
    made = tmp_path_factory.mktemp("run")
    write_tiny_model(made / "model")
    write_text(made / "text.jsonl")
    return made


@pytest.fixture(autouse=True)
def returned(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The runs that asked for freed memory to be returned; this process is left as it is."""
    asked_for: list[bool] = []
    monkeypatch.setattr(memory, "return_freed", lambda: asked_for.append(True))
    return asked_for


def asked(folder: Path, **section: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "model": str(folder / "model"),
            "data": {"train": str(folder / "text.jsonl"), "length": 96},
            "memory": section,
            "trainer": {"steps": 2, "save_every": 1, "output": str(folder / "out")},
        }
    )


def predicted(folder: Path) -> dict[str, int]:
    subject = subject_of(asked(folder))
    return {name: plan.predict(subject.replace({"memory.recompute": name})).peak for name in ORDER}


def test_the_least_that_fits(folder: Path) -> None:
    peaks = predicted(folder)
    for budget in sorted({*peaks.values(), max(peaks.values()) + 1}):
        wanted = next(name for name in ORDER if peaks[name] <= budget)
        settled = settle(asked(folder, recompute="auto", budget=budget))
        assert settled.recipe.memory.recompute == wanted
        assert settled.predicted_peak == peaks[wanted]


def test_nothing_fits(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"no choice fits 0\.00 GiB; the smallest is .* predicted peak of"):
        settle(asked(folder, recompute="auto", budget="1kB"))


def test_without_a_budget_the_free_memory_counts(folder: Path) -> None:
    settled = settle(asked(folder, recompute="auto"))
    assert settled.recipe.memory.recompute == "none"
    assert settled.budget is not None
    assert settled.budget > 1 << 28


def test_a_budget_holds_a_run_that_chose_itself(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"predicted peak .* is above memory\.budget 1MB"):
        train(asked(folder, recompute="none", budget="1MB"), progress=False)
    assert settle(asked(folder, recompute="none")).predicted_peak is None


def test_a_run_says_what_it_chose_and_keeps_it_when_resumed(folder: Path) -> None:
    peaks = predicted(folder)
    recipe = asked(folder, recompute="auto", budget=peaks["layer"])
    result = train(recipe, progress=False, overwrite=True)
    assert result.recompute == next(name for name in ORDER if peaks[name] <= peaks["layer"])
    assert result.predicted_peak == peaks[result.recompute]
    for line in log_of(result.output):
        assert line["recompute"] == result.recompute
        assert line["predicted_peak_bytes"] == result.predicted_peak
    saved = checkpoint.read_state(checkpoint.path_for(result.output, 1))
    assert saved["memory"]["recompute"] == result.recompute
    again = train(recipe, progress=False, resume=checkpoint.path_for(result.output, 1))
    assert again.recompute == result.recompute
    assert again.losses == result.losses[1:]
    assert json.loads((result.output / "log.jsonl").read_text().splitlines()[-1])["recompute"] == result.recompute


def test_only_a_run_with_a_budget_returns_what_it_frees(folder: Path, returned: list[bool]) -> None:
    for budget in (None, "1GiB"):
        assert not returned
        train(asked(folder, recompute="none", budget=budget), progress=False, overwrite=True)
    assert returned == [True]


def test_patch_takes_no_auto() -> None:
    with pytest.raises(ValueError, match=r"memory\.recompute auto is settled before a run is patched"):
        patch(build("llama"), {"memory": {"recompute": "auto"}})


def test_a_folder_with_a_config_alone_is_enough(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "model" / "config.json").read_text())
    alone = subject_of(asked(folder).replace({"model": str(tmp_path)}))
    assert plan.predict(alone).peak == plan.predict(subject_of(asked(folder))).peak


def test_a_gpu_need_not_be_there(folder: Path) -> None:
    assert plan.predict(subject_of(asked(folder), device="cuda")).peak > 0


def test_choices(folder: Path) -> None:
    rows = {row.name: row for row in plan.choices(subject_of(asked(folder)))}
    peaks = predicted(folder)
    now = rows["as the recipe says"].prediction
    assert now is not None
    assert now.peak == peaks["none"]
    for name in ORDER[1:]:
        changed = rows[f"memory.recompute: {name}"].prediction
        assert changed is not None
        assert changed.peak == peaks[name]
    assert {"attention.train: s2", "tokens: lemo", "trainer.batch: 2", "plain Hugging Face + PEFT"} <= set(rows)
