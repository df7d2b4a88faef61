"""Lean decoder layers on the real model against Hugging Face + PEFT + SDPA: memory kept, time of a step, loss, length.

SmolLM2-135M with LoRA r=8 on q, k, v, o in float32, on the Python documentation and standard library. Parts:

  kept     bytes that live between forward and backward, a token
  steps    seconds of a training step, all competitors in turn, medians of ratios of wall and of CPU time
  curve    losses of 30 AdamW steps at 512 tokens, same data and seed
  longest  the longest row that trains under a limit on the process' memory, each shown by one step in its own process

`python -m bench.lean_layers [PART ...]` runs parts and writes them to bench/records/lean_layers.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import longspan
from bench.record import RECORDS, environment
from longspan import data
from longspan.data.config import DataConfig
from longspan.memory import measure
from longspan.train.memory import peak_rss, reset_peak
from longspan.train.model import load_model

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
S2 = {"method": "s2", "groups": 4}
REST = 0.3  # seconds before each step: torch's threads spin for a while after the last product


@dataclass(frozen=True)
class Competitor:
    """A way to train the model; `attention` None is the stock model."""

    attention: dict[str, Any] | None
    recompute: str = "none"


STOCK = Competitor(None)
COMPETITORS = {
    "Hugging Face + PEFT + SDPA": STOCK,
    "longspan": Competitor({"method": "full"}),
    "longspan, recompute mlp": Competitor({"method": "full"}, "mlp"),
    "longspan, recompute mlp+qkv": Competitor({"method": "full"}, "mlp+qkv"),
    "longspan, S2": Competitor(S2),
    "longspan, S2, recompute mlp+qkv": Competitor(S2, "mlp+qkv"),
}
BASELINE = next(iter(COMPETITORS))


def adapted(recipe: dict[str, Any] | None) -> Any:
    """The model in training mode with fresh adapters, the same for every competitor; None is the stock model."""
    from peft import LoraConfig, get_peft_model

    model, _ = load_model("demo")
    model.config.use_cache = False
    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM"))
    if recipe is not None:
        longspan.patch(model, recipe)
    return model.train()


def build(competitor: Competitor, length: int) -> Any:
    """A competitor's model."""
    if competitor.attention is None:
        return adapted(None)
    return adapted(
        {
            "data": {"length": length},
            "attention": {"train": competitor.attention},
            "memory": {"recompute": competitor.recompute},
        }
    )


def rows(length: int, count: int) -> list[Tensor]:
    """Token ids [1, length] of real text, one document each where documents are long enough."""
    _, tokenizer = load_model("demo")
    train, _ = data.build(DataConfig(length=length), tokenizer, 0)
    found = []
    for row in train:
        ids = torch.as_tensor(row["input_ids"])[None]
        if ids.shape[1] == length:
            found.append(ids)
        if len(found) == count:
            return found
    raise ValueError(f"the corpus has {len(found)} rows of {length} tokens; {count} are needed")


def one_step(model: Any, ids: Tensor) -> float:
    """Forward and backward; gradients are dropped afterwards."""
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    model.zero_grad(set_to_none=True)
    return float(loss.detach())


def alive(model: Any, ids: Tensor) -> dict[str, float]:
    """Bytes a token that live after a forward, and at most while it ran."""
    one_step(model, ids)
    with measure() as live:
        loss = model(input_ids=ids, labels=ids).loss
    del loss
    return {"bytes_per_token": live.end_bytes / ids.shape[1], "peak_per_token": live.peak_bytes / ids.shape[1]}


def kept(length: int = 1024) -> dict[str, Any]:
    """Bytes a token that live from the forward to the backward, and their share of the baseline's."""
    ids = rows(length, 1)[0]
    found = {name: alive(build(competitor, length), ids) for name, competitor in COMPETITORS.items()}
    for figures in found.values():
        figures["share"] = figures["bytes_per_token"] / found[BASELINE]["bytes_per_token"]
    return {"length": length, "competitors": found}


def share_weights(models: list[Any]) -> None:
    """Puts the frozen parameters of all models, which are equal, where the first one has them."""
    first = dict(models[0].named_parameters())
    for model in models[1:]:
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                parameter.data = first[name].data


def interleaved(
    models: dict[str, Any], ids: list[Tensor]
) -> tuple[dict[str, list[float]], dict[str, list[float]], dict[str, float]]:
    """Wall and CPU seconds of each model's steps, all models in turn on each row, and their losses on the first row.

    The first row warms up and is not timed.
    """
    wall: dict[str, list[float]] = {name: [] for name in models}
    cpu: dict[str, list[float]] = {name: [] for name in models}
    losses: dict[str, float] = {}
    share_weights(list(models.values()))
    for turn, row in enumerate(ids):
        for name, model in models.items():
            gc.collect()
            time.sleep(REST)
            start, used = time.perf_counter(), time.process_time()
            loss = one_step(model, row)
            if not turn:
                losses[name] = loss
                continue
            wall[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - used)
        print(f"round {turn} of {len(ids) - 1}", {name: times[-1:] for name, times in wall.items()}, flush=True)
    return wall, cpu, losses


def steps(length: int, names: list[str], rounds: int) -> dict[str, Any]:
    """Wall and CPU seconds of a step, interleaved."""
    ids = rows(length, rounds + 1)
    models = {name: build(COMPETITORS[name], length) for name in names}
    wall, cpu, _ = interleaved(models, ids)

    def ratio(seconds: dict[str, list[float]], name: str) -> float:
        return statistics.median(b / s for b, s in zip(seconds[BASELINE], seconds[name], strict=True))

    return {
        "length": length,
        "rounds": rounds,
        "competitors": {
            name: {
                "seconds": statistics.median(wall[name]),
                "cpu_seconds": statistics.median(cpu[name]),
                "faster": ratio(wall, name),
                "faster_cpu": ratio(cpu, name),
            }
            for name in names
        },
    }


def curve(length: int = 512, count: int = 30) -> dict[str, Any]:
    """Losses of the baseline and of the lean model over AdamW steps."""
    ids, losses = rows(length, count), {}
    for name in (BASELINE, "longspan", "longspan, recompute mlp+qkv"):
        model = build(COMPETITORS[name], length)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
        losses[name] = []
        for row in ids:
            loss = model(input_ids=row, labels=row).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[name].append(float(loss.detach()))
    stock = losses[BASELINE]
    differences = {name: max(abs(a - b) for a, b in zip(stock, values, strict=True)) for name, values in losses.items()}
    return {"length": length, "steps": count, "losses": losses, "largest_difference": differences}


def apart(name: str, length: int, limit: int, attention: dict[str, Any] | None = None) -> dict[str, Any]:
    """One step in its own process under a limit on its memory: whether it fits, its time and its peak."""
    command = [sys.executable, "-m", "bench.lean_layers", "--one", name, "--length", str(length)]
    command += ["--attention", json.dumps(attention)] if attention else []
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )
    said = (done.stderr or done.stdout).strip().splitlines()[-1:]
    figures = json.loads(done.stdout.strip().splitlines()[-1]) if done.returncode == 0 else None
    found = {"competitor": name, "length": length, "limit_bytes": limit, "fits": figures is not None}
    print(found, figures or said, flush=True)
    return found | {"attention": attention, "figures": figures, "said": said if figures is None else []}


def alone(name: str, length: int, attention: dict[str, Any] | None) -> dict[str, Any]:
    """What the child process of `apart` does."""
    competitor = COMPETITORS[name]
    if attention is not None:
        competitor = Competitor(attention, competitor.recompute)
    model = build(competitor, length)
    # Rows longer than any document: real text, one after the other.
    pieces = rows(4096, -(-length // 4096))
    ids = torch.cat(pieces, 1)[:, :length]
    reset_peak()
    start = time.perf_counter()
    loss = one_step(model, ids)
    return {"seconds": time.perf_counter() - start, "peak_rss": peak_rss(), "loss": loss}


def longest(
    baseline: list[int], ours: list[int], full: list[int], limit: int, before: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Steps of the lean model with a window, of the baseline, and with full attention; other rows of `before` stay."""
    lean = "longspan, recompute mlp+qkv"
    window = {"method": "window", "size": 1024, "sinks": 4}
    wanted: list[tuple[str, int, dict[str, Any] | None]] = [
        *((lean, length, window) for length in ours),
        *((BASELINE, length, None) for length in baseline),
        *((lean, length, None) for length in full),
    ]
    others = [row for row in before if (row["competitor"], row["length"], row["attention"]) not in wanted]
    return others + [apart(name, length, limit, attention) for name, length, attention in wanted]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="kept, steps, curve, longest (default: all)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=float, default=22.0, help="GiB that a process of `longest` may use")
    parser.add_argument("--baseline-lengths", type=int, nargs="*", default=[9216, 10240])
    parser.add_argument("--our-lengths", type=int, nargs="*", default=[67584])
    parser.add_argument("--full-lengths", type=int, nargs="*", default=[32768], help="of steps with full attention")
    parser.add_argument("--one", choices=list(COMPETITORS), help=argparse.SUPPRESS)
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--attention", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    if arguments.one:
        print(json.dumps(alone(arguments.one, arguments.length, arguments.attention)))
        return
    limit = int(arguments.memory * (1 << 30))
    everything: dict[str, Callable[[], Any]] = {
        "kept": kept,
        "curve": curve,
        "steps": lambda: [
            steps(4096, list(COMPETITORS), arguments.rounds),
            steps(8192, [BASELINE, "longspan, S2"], max(1, arguments.rounds - 1)),
        ],
        "longest": lambda: longest(
            arguments.baseline_lengths,
            arguments.our_lengths,
            arguments.full_lengths,
            limit,
            results.get("longest", {}).get("result", []),
        ),
    }
    unknown = set(arguments.parts) - set(everything)
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}; allowed: {', '.join(everything)}")
    path = RECORDS / "lean_layers.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for name in arguments.parts or everything:
        results[name] = {"result": everything[name](), "environment": environment(torch.get_num_threads())}
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(results[name]["result"], indent=1), flush=True)


if __name__ == "__main__":
    main()
