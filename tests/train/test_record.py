"""What a run writes: log lines, TensorBoard scalars, progress on standard error and nothing else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from longspan.recipe import Recipe
from longspan.train.run import log_of, train
from runs import run_quietly

Make = Callable[..., dict[str, Any]]


def test_log_lines_hold_what_the_result_says(make: Make, cache: Path) -> None:
    result = run_quietly(make(trainer={"steps": 5, "log_every": 2, "batch": 2}), cache)
    lines = log_of(result.output)
    assert [line["step"] for line in lines] == [2, 4, 5]
    assert [line["loss"] for line in lines] == pytest.approx(
        [sum(result.losses[:2]) / 2, sum(result.losses[2:4]) / 2, result.losses[4]]
    )
    assert [line["grad_norm"] for line in lines] == [result.grad_norms[step] for step in (1, 3, 4)]
    assert lines[-1]["seconds_per_step"] == pytest.approx(result.seconds[4])
    assert result.tokens_per_second == pytest.approx(lines[-1]["tokens"] / sum(result.seconds))
    assert all(line["tokens_per_second"] > 0 for line in lines)
    assert lines[-1]["peak_memory_bytes"] <= result.peak_memory
    assert len(result.seconds) == len(result.losses) == result.steps == 5
    assert Recipe.from_yaml(result.output / "recipe.yaml") == Recipe.from_yaml(result.final / "recipe.yaml")


def test_log_lines_hold_the_share_of_channels_norms(make: Make, cache: Path) -> None:
    tokens = {"method": "lemo", "mlp": "cols", "mlp_ratio": 0.5}
    adapter = {"method": "lora", "rank": 2, "alpha": 4, "targets": ["q_proj", "v_proj"]}
    recipe = make(tokens=tokens, adapter=adapter)
    shares = [line["mlp_kept_norm"] for line in log_of(run_quietly(recipe, cache).output)]
    assert all(0.5 < share < 1 for share in shares)
    assert len(set(shares)) == len(shares)  # of each step's own rows


def test_tensorboard_has_every_line(make: Make, cache: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = run_quietly(make(), cache)
    events = EventAccumulator(str(result.output / "tensorboard")).Reload()
    assert {"train/loss", "train/tokens_per_second", "train/peak_memory_bytes"} <= set(events.Tags()["scalars"])
    scalars = events.Scalars("train/loss")
    assert [one.step for one in scalars] == [1, 2, 3, 4]
    assert [one.value for one in scalars] == pytest.approx(result.losses)


def test_progress_goes_to_standard_error_and_nothing_to_standard_output(
    make: Make, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = train(make(), cache_dir=cache)
    out, err = capfd.readouterr()
    assert out == ""
    assert f"step 4/4  loss {result.losses[-1]:.4f}" in err
    train(make(), cache_dir=cache, progress=False, overwrite=True)
    assert capfd.readouterr() == ("", "")


PEAKS = """
import torch
from longspan.train import memory
before = memory.peak_rss()
block = torch.ones(40_000_000)
del block
assert memory.peak_rss() >= before
if memory.reset_peak():
    start = memory.peak_rss()
    block = torch.ones(40_000_000)
    del block
    assert memory.peak_rss() - start > 150_000_000
    memory.reset_peak()
    assert memory.peak_rss() < start + 80_000_000
"""


def test_peak_memory_counts_what_was_released_and_can_be_reset() -> None:
    """In a process of its own: after other tests an allocation may fit into memory that is resident already."""
    subprocess.run([sys.executable, "-c", PEAKS], check=True, timeout=300)


def test_the_held_out_loss_equals_plain_transformers_document_by_document(make: Make, cache: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from longspan import data

    recipe = make(trainer={"steps": 1})
    result = run_quietly(recipe, cache, evaluate=True)
    limited = run_quietly(recipe, cache, evaluate=1, overwrite=True)
    model = AutoModelForCausalLM.from_pretrained(recipe["model"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(recipe["model"])
    rows = data.build(Recipe.model_validate(recipe).data, tokenizer, 3, cache_dir=cache).held_out
    assert rows is not None
    means = []
    for count in (len(rows), 1):
        total, labels = 0.0, 0
        for index in range(count):
            start = 0
            for length in rows[index]["doc_lengths"]:
                ids = torch.tensor([rows[index]["input_ids"][start : start + length]])
                start += length
                if length > 1:
                    with torch.no_grad():
                        total += float(model(ids, labels=ids).loss) * (length - 1)
                    labels += length - 1
        means.append(total / labels)
    assert [result.held_out_before, limited.held_out_before] == pytest.approx(means, rel=1e-5)
    nothing = make(output="none", data={**recipe["data"], "held_out": 0.0})
    with pytest.raises(ValueError, match=r"data\.held_out is 0"):
        run_quietly(nothing, cache, evaluate=True)
