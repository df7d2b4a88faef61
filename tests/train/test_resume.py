"""Law: interrupting and resuming a run changes no bit of its losses, gradient norms, log and weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runs import Stop, StopAfter, assert_continues, run_quietly, staging_left

Make = Callable[..., dict[str, Any]]

VARIANTS: dict[str, dict[str, Any]] = {
    "lora, dropout, accumulation, several passes over the rows": {
        "trainer": {"steps": 7, "accumulate": 3, "batch": 2, "save_every": 1}
    },
    "log lines over several steps, sparse checkpoints": {
        "trainer": {"steps": 7, "log_every": 3, "save_every": 2},
        "update": {"engine": {"method": "sgd", "lr": 1e-1, "momentum": 0.9}},
    },
    "all weights in bfloat16 with recomputed layers, no clipping": {
        "trainer": {"steps": 5, "clip": 0.0, "accumulate": 2, "schedule": "cosine"},
        "dtype": "bfloat16",
        "adapter": {"method": "none"},
        "memory": {"recompute": "layer"},
    },
    "codebooks and routers beside an adapter, a ramp": {
        "trainer": {"steps": 7, "accumulate": 2},
        "adapter": {"method": "lora", "rank": 2, "also_train": ["norms"]},
        "attention": {"train": {"method": "pq", "codewords": 4, "keep_ratio": 0.4, "refresh_every": 2}},
        "ffn": {"train": {"method": "routed", "ramp_steps": 6}},
    },
    "codebooks and routers beside all weights in bfloat16": {
        "trainer": {"steps": 5},
        "dtype": "bfloat16",
        "adapter": {"method": "none"},
        "attention": {"train": {"method": "pq", "codewords": 4, "keep_ratio": 0.4, "refresh_every": 1}},
        "ffn": {"train": {"method": "routed"}},
    },
    "lora in bfloat16, stretched positions": {
        "trainer": {"steps": 5},
        "dtype": "bfloat16",
        "positions": {"method": "linear", "factor": 2.0},
    },
}


@pytest.mark.parametrize("name", VARIANTS)
def test_resumed_equals_uninterrupted(name: str, make: Make, cache: Path) -> None:
    variant = VARIANTS[name]
    whole = run_quietly(make(output="whole", **variant), cache)
    recipe = make(output="broken", **variant)
    with pytest.raises(Stop):
        run_quietly(recipe, cache, callbacks=[StopAfter(4)])
    resumed = run_quietly(recipe, cache, resume=True)
    assert 1 < resumed.first_step <= 4
    assert_continues(whole, resumed)
    assert not staging_left(resumed.output)


def test_resume_of_a_resume_and_from_a_path(make: Make, cache: Path) -> None:
    whole = run_quietly(make(output="whole", trainer={"steps": 6}), cache)
    recipe = make(output="broken", trainer={"steps": 6})
    for step in (2, 4):
        with pytest.raises(Stop):
            run_quietly(recipe, cache, callbacks=[StopAfter(step)], resume=step > 2)
    resumed = run_quietly(recipe, cache, resume=Path(recipe["trainer"]["output"]) / "checkpoint-3")
    assert resumed.first_step == 4
    assert_continues(whole, resumed)


def test_resume_of_a_finished_run_makes_no_step(make: Make, cache: Path) -> None:
    recipe = make()
    whole = run_quietly(recipe, cache)
    again = run_quietly(recipe, cache, resume=True)
    assert again.losses == []
    assert again.steps == whole.steps
    assert_continues(whole, again)


def test_more_steps_continue_the_same_run(make: Make, cache: Path) -> None:
    constant = {"schedule": "constant", "save_every": 0}
    whole = run_quietly(make(output="whole", trainer={**constant, "steps": 6}), cache)
    run_quietly(make(output="grown", trainer={**constant, "steps": 3}), cache)
    resumed = run_quietly(make(output="grown", trainer={**constant, "steps": 6}), cache, resume=True)
    assert resumed.first_step == 4
    assert_continues(whole, resumed)


def test_held_out_loss_before_survives_a_resume(make: Make, cache: Path) -> None:
    recipe = make()
    with pytest.raises(Stop):
        run_quietly(recipe, cache, callbacks=[StopAfter(3)], evaluate=True)
    resumed = run_quietly(recipe, cache, resume=True, evaluate=True)
    whole = run_quietly(make(output="whole"), cache, evaluate=True)
    assert resumed.held_out_before == whole.held_out_before
    assert resumed.held_out_after == whole.held_out_after
    assert whole.held_out_after is not None
    assert whole.held_out_before is not None
    assert whole.held_out_after < whole.held_out_before
