"""Law: SIGTERM costs nothing; the step that runs is finished and saved, and a resumed run makes the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import TrainerCallback

import runs
from longspan.train import checkpoint
from longspan.train.stopping import Stopper


def recipe_in(folder: Path, tiny: Path, text: Path, steps: int) -> dict[str, Any]:
    return {
        "model": str(tiny),
        "data": {"train": str(text), "length": 48},
        "adapter": {"method": "lora", "rank": 2, "dropout": 0.1},
        "trainer": {"steps": steps, "output": str(folder / "run")},
    }


class TermAt(TrainerCallback):
    """Sends the signal to this process in the middle of a step."""

    def __init__(self, step: int, times: int = 1) -> None:
        self.step, self.times = step, times

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGTERM)


def test_the_step_is_finished_saved_and_continued(tiny: Path, text: Path, cache: Path, tmp_path: Path) -> None:
    whole = runs.run_quietly(recipe_in(tmp_path / "whole", tiny, text, 5), cache)
    recipe = recipe_in(tmp_path / "stopped", tiny, text, 5)
    run = Path(recipe["trainer"]["output"])
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError, match=r"stopped by SIGTERM after step 3; .*checkpoint-3 holds it") as error:
        runs.run_quietly(recipe, cache, callbacks=[TermAt(3)])
    assert error.value.exit_code == 143  # type: ignore[attr-defined]
    assert signal.getsignal(signal.SIGTERM) == before
    assert [checkpoint.step_of(path) for path in checkpoint.list_all(run)] == [3]
    assert not (run / "final").exists()
    resumed = runs.run_quietly(recipe, cache, resume=True)
    assert resumed.first_step == 4
    runs.assert_continues(whole, resumed)


def test_in_the_last_step_the_run_ends_as_ever(tiny: Path, text: Path, cache: Path, tmp_path: Path) -> None:
    result = runs.run_quietly(recipe_in(tmp_path, tiny, text, 2), cache, callbacks=[TermAt(2)])
    assert result.steps == 2
    assert result.final.is_dir()


def _victim(recipe: dict[str, Any], cache: Path) -> None:
    runs.run_quietly(recipe, cache, callbacks=[TermAt(2, times=2)])


def test_a_second_one_ends_the_process_at_once(tiny: Path, text: Path, cache: Path, tmp_path: Path) -> None:
    process = runs.start_process(_victim, recipe_in(tmp_path, tiny, text, 4), cache)
    process.join(60)
    assert process.exitcode == -signal.SIGTERM


def test_another_thread_may_train(tiny: Path, text: Path, cache: Path, tmp_path: Path) -> None:
    done: list[Any] = []
    recipe = recipe_in(tmp_path, tiny, text, 1)
    thread = threading.Thread(target=lambda: done.append(runs.run_quietly(recipe, cache)))
    thread.start()
    thread.join()
    assert done[0].steps == 1
    assert not Stopper().asked


def test_the_command_line_says_so_in_one_line(tiny: Path, text: Path, tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, tiny, text, 100_000)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    command = [sys.executable, "-m", "longspan.cli.main", "train", str(tmp_path / "recipe.yaml")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        log, until = tmp_path / "run" / "log.jsonl", time.monotonic() + 120
        while time.monotonic() < until and not (log.is_file() and len(log.read_text().splitlines()) > 2):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "error: stopped by SIGTERM after step" in errors
    assert "Traceback" not in errors
    (kept,) = checkpoint.list_all(tmp_path / "run")
    checkpoint.check(kept)
