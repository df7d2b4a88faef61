"""Laws of long runs: 50 kills at random moments lose nothing; a thousand steps leak nothing."""

from __future__ import annotations

import itertools
import random
import signal
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

import runs
from longspan.train import checkpoint
from longspan.train.run import FINAL, TrainResult
from tests import heap

pytestmark = pytest.mark.sweep

# What a run carries from step to step differs: masks and masters, codebooks and routers, kept blocks, noise.
RECIPES: dict[str, dict[str, Any]] = {
    "lora, s2": {
        "attention": {"train": {"method": "s2", "groups": 2}},
        "adapter": {"method": "lora", "rank": 2, "dropout": 0.1, "also_train": ["embeddings"]},
    },
    "gmt, ema": {
        "adapter": {"method": "none"},
        "update": {
            "engine": {"method": "adamw", "lr": 1e-3},
            "transforms": [{"method": "gmt", "keep_ratio": 0.3}],
            "hooks": [{"method": "ema", "decay": 0.9}],
        },
    },
    "pq, routed": {
        "attention": {"train": {"method": "pq", "refresh_every": 2}},
        "ffn": {"train": {"method": "routed", "blocks": 4, "active": 2, "ramp_steps": 4}},
        "adapter": {"method": "lora", "rank": 2},
    },
    "lemo, recompute": {
        "tokens": {"method": "lemo", "block": 16, "layers": [0], "selector": "random"},
        "memory": {"recompute": "mlp"},
        "adapter": {"method": "lora", "rank": 2},
    },
    "mezo": {"adapter": {"method": "none"}, "update": {"engine": {"method": "mezo", "lr": 1e-3}}},
}


def recipe_of(name: str, tiny: Path, text: Path, output: Path, **trainer: Any) -> dict[str, Any]:
    loop = {"accumulate": 2, "save_every": 1, "output": str(output), **trainer}
    return {"model": str(tiny), "data": {"train": str(text), "length": 48}, "trainer": loop, **RECIPES[name]}


def _go(recipe: dict[str, Any], cache: Path) -> None:
    torch.set_num_threads(1)
    runs.run_quietly(recipe, cache, resume=bool(checkpoint.list_all(Path(recipe["trainer"]["output"]))) or None)


def _timed(recipe: dict[str, Any], cache: Path) -> float:
    began = time.monotonic()
    process = runs.start_process(_go, recipe, cache)
    process.join(120)
    assert process.exitcode == 0
    return time.monotonic() - began


@pytest.mark.parametrize("name", RECIPES)
def test_random_kills(name: str, tiny: Path, text: Path, cache: Path, tmp_path: Path) -> None:
    """A run that is killed ten times, also while it resumes, while it saves and at its end, ends with every bit."""
    whole = recipe_of(name, tiny, text, tmp_path / "whole", steps=6)
    _go(whole, cache)
    seconds = _timed({**whole, "trainer": {**whole["trainer"], "output": str(tmp_path / "timed")}}, cache)
    draw = random.Random(name)
    kills = chains = 0
    while kills < 10:
        run = tmp_path / f"run-{chains}"
        recipe = {**whole, "trainer": {**whole["trainer"], "output": str(run)}}
        while not (run / FINAL).is_dir():
            process = runs.start_process(_go, recipe, cache)
            process.join(draw.uniform(0, 1.1 * seconds))
            process.kill()
            process.join(60)
            assert process.exitcode in (0, -signal.SIGKILL), name
            kills += process.exitcode != 0
        chains += 1
        assert not runs.staging_left(run)
        runs.assert_same_weights(run / FINAL, tmp_path / "whole" / FINAL)
        assert runs.lines_without_clock(run) == runs.lines_without_clock(tmp_path / "whole")


class _Used(TrainerCallback):
    """Bytes in use of the C heap, and Python's blocks, after each step."""

    def __init__(self) -> None:
        self.heap: list[int] = []
        self.blocks: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.heap.append(heap.in_use())
        self.blocks.append(sys.getallocatedblocks())


@pytest.mark.parametrize("name", RECIPES)
def test_a_thousand_steps_leak_nothing(name: str, tiny: Path, text: Path, cache: Path, tmp_path: Path) -> None:
    """What is in use grows by a step's record (some floats) and nothing else: no tensor, string or graph stays."""
    used = _Used()
    recipe = recipe_of(name, tiny, text, tmp_path / "run", steps=1000, save_every=1000, accumulate=1)
    result: TrainResult = runs.run_quietly(recipe, cache, callbacks=[used])
    assert len(result.losses) == 1000
    for found, allowed, what in ((used.heap, 256, "bytes"), (used.blocks, 40, "Python objects")):
        lowest = [min(found[at : at + 100]) for at in range(200, 1000, 100)]
        # Of the windows' growths the median: a cache grows once, a leak always.
        growth = statistics.median(b - a for a, b in itertools.pairwise(lowest)) / 100
        assert growth < allowed, f"{growth:.1f} {what} a step"
