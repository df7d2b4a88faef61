"""Token elimination on the real model against the fused dense layers and plain Hugging Face + PEFT.

SmolLM2-135M with LoRA r=8 on q, k, v, o in float32, on the Python documentation and standard library. Parts:

  kept       bytes that live between forward and backward, a token, and their share of the fused dense model's
  steps      seconds of a training step, all competitors in turn, medians of ratios of wall and of CPU time
  long       the same at 16384 tokens, dense against elimination alone
  layer      the halves of one layer alone, at the lengths of both: seconds of forward and backward, bytes kept
  quality    held-out loss, dense evaluation, after the same 60 steps at 2048 tokens, for modes, selectors and ratios
  recall     trains predictors, and measures them against exact scores

`python -m bench.lemo [PART ...]` writes to bench/records/lemo.json; quality goes on where it stopped. Parts without
a clock (quality, recall) can run beside each other, a thread each.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import longspan
from bench import lemo_layer
from bench.lean_layers import BASELINE, S2, adapted, alive, interleaved, rows
from bench.record import RECORDS, environment

PATH = RECORDS / "lemo.json"
PREDICTOR = Path("runs/lemo/predictor.safetensors")
DENSE = "longspan, dense"

Setup = dict[str, Any]  # recipe keys; None is the stock model


def lemo(**changes: Any) -> Setup:
    """A recipe's tokens section."""
    return {"tokens": {"method": "lemo", "keep_ratio": 0.4} | changes}


ELIMINATE = {"forward": "eliminate", "mlp": "dense", "selector": "predictor", "predictor": "untrained"}
COMPETITORS: dict[str, Setup | None] = {
    BASELINE: None,
    DENSE: {},
    "eliminate, predictor": lemo(**ELIMINATE),
    "eliminate, predictor, mlp rows": lemo(**(ELIMINATE | {"mlp": "rows"})),
    "eliminate, predictor, mlp skip": lemo(**(ELIMINATE | {"mlp": "skip"})),
    "dense forward, random, mlp rows": lemo(forward="dense", mlp="rows", selector="random"),
    "dense forward, gradient, mlp rows": lemo(forward="dense", mlp="rows", selector="gradient"),
    "S2": {"attention": {"train": S2}},
    "S2 + eliminate, predictor": {"attention": {"train": S2}} | lemo(**ELIMINATE),
    "S2 + dense forward, random, mlp rows": {"attention": {"train": S2}} | lemo(forward="dense", mlp="rows"),
}
ON_RECOMPUTE: dict[str, Setup] = {
    "longspan, dense, recompute mlp": {"memory": {"recompute": "mlp"}},
    "eliminate, predictor, recompute mlp": lemo(**ELIMINATE) | {"memory": {"recompute": "mlp"}},
    "eliminate, predictor, mlp rows, recompute mlp": lemo(**(ELIMINATE | {"mlp": "rows"}))
    | {"memory": {"recompute": "mlp"}},
    "dense forward, random, mlp rows, recompute mlp": lemo(forward="dense", mlp="rows")
    | {"memory": {"recompute": "mlp"}},
}


def build(setup: Setup | None, length: int) -> Any:
    """A competitor's model."""
    return adapted(None if setup is None else {"data": {"length": length}} | setup)


def kept(length: int = 1024) -> dict[str, Any]:
    """Live bytes a token after a forward."""
    ids = rows(length, 1)[0]
    found = {name: alive(build(setup, length), ids) for name, setup in (COMPETITORS | ON_RECOMPUTE).items()}
    for figures in found.values():
        figures["share_of_dense"] = figures["bytes_per_token"] / found[DENSE]["bytes_per_token"]
    return {"length": length, "competitors": found}


def steps(length: int, names: list[str], rounds: int) -> dict[str, Any]:
    """Wall and CPU seconds of a step, interleaved; ratios to the fused dense model and to the baseline."""
    ids = rows(length, rounds + 1)
    models = {name: build(COMPETITORS[name], length) for name in names}
    wall, cpu, losses = interleaved(models, ids)

    def ratio(seconds: dict[str, list[float]], name: str, other: str) -> float | None:
        if other not in seconds:
            return None
        return statistics.median(b / s for b, s in zip(seconds[other], seconds[name], strict=True))

    figures = {
        name: {
            "seconds": statistics.median(wall[name]),
            "cpu_seconds": statistics.median(cpu[name]),
            "faster_than_dense": ratio(wall, name, DENSE),
            "faster_than_dense_cpu": ratio(cpu, name, DENSE),
            "faster_than_baseline": ratio(wall, name, BASELINE),
            "first_loss": losses[name],
        }
        for name in names
    }
    return {"length": length, "rounds": rounds, "competitors": figures}


def recall(length: int = 2048, steps_: int = 450) -> dict[str, Any]:
    """Trains predictors of the demo model's later half, and measures them on held-out rows."""
    from longspan.analysis import predictors
    from longspan.analysis import recall as measuring
    from longspan.analysis.layers import bare, subject_of
    from longspan.recipe import Recipe
    from longspan.train.run import prepare

    recipe = Recipe.model_validate({"data": {"length": length, "packing": "none", "held_out": 0.05}} | lemo())
    subject = subject_of(recipe, *prepare(bare(recipe)))
    start, file = time.perf_counter(), None
    for found in predictors.train(subject, predictors.Settings(steps=steps_)):
        if isinstance(found, predictors.Progress):
            if found.step % 20 == 0:
                print(found, flush=True)
        else:
            file = found
    seconds = time.perf_counter() - start
    assert file is not None
    shares = measuring.mean_recall(subject, subject.rows(held_out=True), file, 16)
    file = replace(file, about=file.about | {"recall": shares})
    file.write(PREDICTOR)
    mean = sum(shares.values()) / len(shares)
    return {"length": length, "seconds": seconds, "recall": shares, "mean": mean, "about": file.about}


def quality_setups() -> dict[str, Setup]:
    """What is trained and compared, by name."""
    found: dict[str, Setup] = {"dense training": {}}
    trained = {"selector": "predictor", "predictor": str(PREDICTOR)}
    choices: dict[str, dict[str, Any]] = {
        "random": {"selector": "random"},
        "scores": {"selector": "scores"},
        "predictor": trained,
        "token_loss": {"selector": "token_loss"},
        "gradient": {"selector": "gradient"},
    }
    for ratio in (0.4, 0.2, 0.6):
        for name, choice in choices.items():
            found[f"forward dense, {name}, {ratio}"] = lemo(forward="dense", mlp="rows", keep_ratio=ratio, **choice)
    for layers, where in (("later-half", "later half"), (list(range(22, 29)), "last seven")):
        for ratio in (0.4, 0.7, 0.9):
            for name in ("scores", "predictor", "random", "last"):
                choice = {"selector": "random"} if name == "last" else choices[name]
                found[f"eliminate, {name}, {ratio}, {where}"] = lemo(
                    forward="eliminate", mlp="dense", keep_ratio=ratio, layers=layers, **choice
                )
    return found


def _last(layer: Any, tokens: Any, rows_: Tensor, stream: Any) -> Tensor:
    """Later blocks score higher."""
    return torch.arange(stream.blocks.cu_blocks[-1], dtype=torch.float32)


def one_quality(name: str, setup: Setup, length: int, count: int, held_out: int) -> dict[str, Any]:
    """Loss on held-out rows after `count` steps, with the training's first and last losses and its time."""
    from longspan.patch.tokens import select

    recipe = {
        "data": {"length": length, "packing": "none", "held_out": 0.05},
        "adapter": {"method": "lora", "rank": 8, "alpha": 16},
        "update": {"engine": {"method": "adamw", "lr": 5e-4}},
        "trainer": {"steps": count},
    } | setup
    before = select.BEFORE_SCORES["random"]
    if ", last, " in name:
        select.BEFORE_SCORES["random"] = _last
    try:
        with tempfile.TemporaryDirectory() as folder:
            recipe["trainer"]["output"] = f"{folder}/run"
            result = longspan.train(recipe, evaluate=held_out, progress=False)
    finally:
        select.BEFORE_SCORES["random"] = before
    return {
        "held_out_before": result.held_out_before,
        "held_out_after": result.held_out_after,
        "first_loss": result.losses[0],
        "last_losses": sum(result.losses[-5:]) / 5,
        "seconds_a_step": statistics.median(result.seconds),
    }


def quality(only: str, without: str) -> dict[str, Any]:
    """Every setup that is not recorded yet."""
    length, count, held_out = 2048, 60, 16

    def found() -> dict[str, Any]:
        runs = recorded().get("quality", {}).get("result", {}).get("runs", {})
        return {"length": length, "steps": count, "held_out_rows": held_out, "runs": runs}

    for name, setup in quality_setups().items():
        if name in found()["runs"] or only not in name or (without and without in name):
            continue
        figures = one_quality(name, setup, length, count, held_out)
        print(name, figures, flush=True)
        now = found()
        now["runs"][name] = figures
        save("quality", now)
        gc.collect()
    return found()


def recorded() -> dict[str, Any]:
    """The record as it lies on the disk: another part may have written since."""
    return json.loads(PATH.read_text(encoding="utf-8")) if PATH.is_file() else {}


def save(name: str, result: Any) -> None:
    """Puts a part's figures into the record."""
    results = recorded() | {name: {"result": result, "environment": environment(torch.get_num_threads())}}
    PATH.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="kept, steps, long, layer, recall, quality (default: all)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="of `quality`: setups whose name holds this")
    parser.add_argument("--without", default="", help="of `quality`: leave out setups whose name holds this")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    everything: dict[str, Callable[[], Any]] = {
        "kept": kept,
        "steps": lambda: steps(8192, list(COMPETITORS), arguments.rounds),
        "long": lambda: steps(16384, [DENSE, "eliminate, predictor"], max(1, arguments.rounds - 1)),
        "layer": lambda: [lemo_layer.timed(lemo(**ELIMINATE), length, arguments.rounds) for length in (8192, 16384)],
        "recall": recall,
        "quality": lambda: quality(arguments.only, arguments.without),
    }
    unknown = set(arguments.parts) - set(everything)
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}; allowed: {', '.join(everything)}")
    for name in arguments.parts or everything:
        figures = everything[name]()
        save(name, figures)
        print(json.dumps(figures, indent=1), flush=True)


if __name__ == "__main__":
    main()
