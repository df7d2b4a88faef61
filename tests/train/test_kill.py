"""Law: `kill -9` at any moment, also during a save, costs at most the steps since the last checkpoint."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import runs
from longspan import folders
from longspan.train import checkpoint
from longspan.train.run import TrainResult
from longspan.train.trainer import LongTrainer

Make = Callable[..., dict[str, Any]]

# Where a run is killed -> checkpoints that are whole on disk afterwards.
MOMENTS = {
    "between two steps": [1, 2],
    "weights half written": [1, 2],
    "optimizer half written": [1, 2],
    "before the manifest": [1, 2],
    "before the rename": [1, 2],
    "after the rename": [1, 2, 3],
    "while an old checkpoint is removed": [2, 3],
    "in the final folder": [3, 4],
}


def _arm(moment: str) -> None:
    """Make this process kill itself at `moment` of checkpoint 3 (or of the final folder)."""

    def here(folder: Path) -> bool:
        wanted = "final" if moment == "in the final folder" else "checkpoint-3"
        return wanted in folder.name

    def wrap(owner: Any, name: str, *, when: Callable[..., bool], before: Callable[..., Any]) -> None:
        original = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if when(*args, **kwargs):
                before(*args, **kwargs)
            return original(*args, **kwargs)

        setattr(owner, name, wrapped)

    def half(_self: Any, folder: str) -> None:
        for path in Path(folder).glob("*.safetensors"):
            os.truncate(path, path.stat().st_size // 2)
        runs.kill_self()

    def half_optimizer(_self: Any, folder: str) -> None:
        path = Path(folder) / "optimizer.pt"
        torch.save(torch.zeros(1000), path)
        os.truncate(path, 1500)
        runs.kill_self()

    if moment == "weights half written":
        wrap(LongTrainer, "_save_optimizer_and_scheduler", when=lambda _, d: here(Path(d)), before=half)
    elif moment == "optimizer half written":
        wrap(LongTrainer, "_save_optimizer_and_scheduler", when=lambda _, d: here(Path(d)), before=half_optimizer)
    elif moment in ("before the manifest", "in the final folder"):
        wrap(folders, "write_manifest", when=lambda d, _: here(d), before=runs.kill_self)
    elif moment == "before the rename":
        wrap(os, "rename", when=lambda _, new: here(Path(new)), before=runs.kill_self)
    elif moment == "after the rename":
        wrap(checkpoint, "rotate", when=lambda _, step, keep: step == 3, before=runs.kill_self)
    elif moment == "while an old checkpoint is removed":
        wrap(folders.shutil, "rmtree", when=lambda d, **_: _is_trash(Path(d)), before=runs.kill_self)


def _is_trash(folder: Path) -> bool:
    return folder.name.startswith(".staging-checkpoint-1-") and (folder.parent / "checkpoint-3").is_dir()


def _victim(recipe: dict[str, Any], cache: Path, moment: str) -> None:
    torch.set_num_threads(1)
    _arm(moment)
    callbacks = [_KillAfter(3)] if moment == "between two steps" else []
    runs.run_quietly(recipe, cache, callbacks=callbacks)


class _KillAfter(runs.StopAfter):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            runs.kill_self()


@pytest.fixture(scope="module")
def whole(
    tiny: Path, text: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], TrainResult]:
    """The uninterrupted run that all killed ones are compared with, and its recipe."""
    recipe = {
        "model": str(tiny),
        "data": {"train": str(text), "length": 48},
        "adapter": {"method": "lora", "rank": 2, "dropout": 0.1, "also_train": ["embeddings"]},
        "trainer": {
            "steps": 4,
            "accumulate": 2,
            "save_every": 1,
            "output": str(tmp_path_factory.mktemp("whole") / "run"),
        },
    }
    return recipe, runs.run_quietly(recipe, cache)


def _elsewhere(recipe: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {**recipe, "trainer": {**recipe["trainer"], "output": str(folder)}}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_run_resumes_bit_for_bit(
    moment: str, whole: tuple[dict[str, Any], TrainResult], cache: Path, tmp_path: Path
) -> None:
    recipe = _elsewhere(whole[0], tmp_path / "run")
    process = runs.start_process(_victim, recipe, cache, moment)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    run = tmp_path / "run"
    assert [checkpoint.step_of(path) for path in checkpoint.list_all(run)] == MOMENTS[moment]
    for path in checkpoint.list_all(run):
        checkpoint.check(path)
    resumed = runs.run_quietly(recipe, cache, resume=True)
    assert resumed.first_step == MOMENTS[moment][-1] + 1
    assert not resumed.broken
    assert not runs.staging_left(run)
    runs.assert_continues(whole[1], resumed)


def test_killed_from_outside_while_a_staging_folder_exists(
    whole: tuple[dict[str, Any], TrainResult], cache: Path, tmp_path: Path
) -> None:
    recipe = _elsewhere(whole[0], tmp_path / "run")
    run = tmp_path / "run"
    process = runs.start_process(_victim, recipe, cache, "never")
    until = time.monotonic() + 60
    while process.is_alive() and time.monotonic() < until:
        if any(run.glob(".staging-checkpoint-2-*")):
            process.kill()
            break
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    resumed = runs.run_quietly(recipe, cache, resume=True)
    assert resumed.first_step >= 2
    runs.assert_continues(whole[1], resumed)
