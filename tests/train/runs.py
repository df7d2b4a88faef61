"""What several tests here need: bitwise comparison of runs, a run that stops on purpose, a killed process."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from transformers import TrainerCallback

from longspan.train.run import TrainResult, log_of, train


class Stop(Exception):
    """Raised by StopAfter."""


class StopAfter(TrainerCallback):
    """Ends a run with an exception once `step` is done: the checkpoint of that step is not written any more."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Stop


def tensors(folder: Path) -> dict[str, Any]:
    """All tensors in a folder's safetensors files."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found.update(load_file(path))
    return found


def assert_same_weights(one: Path, other: Path) -> None:
    """Every tensor of two folders has the same name and the same bits."""
    left, right = tensors(one), tensors(other)
    assert left.keys() == right.keys()
    assert left, f"{one} holds no tensors"
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype
        assert tensor.equal(right[name]), name


def lines_without_clock(run: Path) -> list[dict[str, Any]]:
    """The log, except what depends on the machine's speed and memory."""
    clock = ("tokens_per_second", "seconds_per_step", "peak_memory_bytes")
    return [{key: value for key, value in line.items() if key not in clock} for line in log_of(run)]


def assert_continues(whole: TrainResult, resumed: TrainResult) -> None:
    """A resumed run made exactly the steps, figures, log and weights of one that was never interrupted."""
    skipped = resumed.first_step - 1
    assert resumed.resumed_from is not None
    assert resumed.losses == whole.losses[skipped:]
    assert resumed.grad_norms == whole.grad_norms[skipped:]
    assert lines_without_clock(resumed.output) == lines_without_clock(whole.output)
    assert_same_weights(resumed.final, whole.final)


def staging_left(run: Path) -> list[str]:
    """Names of unfinished folders and files in a run's folder."""
    return [path.name for path in run.rglob(".staging-*")]


def start_process(target: Any, *arguments: Any) -> Any:
    """Start `target` in a fresh process that has the heavy imports done already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["longspan.train.run"])
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


def kill_self(*_args: Any, **_kwargs: Any) -> None:
    """End this process as `kill -9` does: no handler, no cleanup, no flushing."""
    os.kill(os.getpid(), signal.SIGKILL)


def run_quietly(recipe: dict[str, Any], cache: Path, **options: Any) -> TrainResult:
    """`train` without progress."""
    return train(recipe, progress=False, cache_dir=cache, **options)
