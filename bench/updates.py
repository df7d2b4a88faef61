"""Updates on the real model: times of the optimiser phase, what frozen weights save, MeZO's memory, and quality.

  phase      one step of every method over the model's 135 M parameters, torch's composition and a copy in turns
  saving     whole steps of full fine-tuning with halves or layers frozen
  mezo       peak memory, weights after 20 cycles, and held-out loss after a run
  quality    held-out loss, forgetting and share of changed weights after 100 steps of full fine-tuning at 512 tokens

`python -m bench.updates [PART ...]` writes to bench/records/updates.json; quality goes on where it stopped.
"""

from __future__ import annotations

import gc
import json
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.parts import PartsFile, Setup, main, train_all, train_one
from bench.race import bandwidth

FILE = PartsFile("updates")
KEEP, LR, DECAY = 0.2, 1e-4, 0.01
ADAMW = {"method": "adamw", "lr": LR}
OURS, FUSED, GMT, TORCH_GMT, COPY = "FusedAdamW", "torch, AdamW fused", "GMT", "torch, GMT", "copy"
CLIPPED = "torch, AdamW fused, clipped"


def model_of(dtype: str = "float32") -> nn.Module:
    """The demo model."""
    from longspan.train.model import load_model

    model: nn.Module = load_model("demo", dtype)[0]
    return model


# The optimiser phase.


class Torch:
    """torch's composition: a mask by the k-th magnitude of each tensor, AdamW fused on float32 weights, zeroing."""

    def __init__(self, params: list[nn.Parameter], keep: float | None, clip: float | None = None) -> None:
        self.params, self.keep, self.clip = params, keep, clip
        self.masters = [p if p.dtype == torch.float32 else nn.Parameter(p.detach().float()) for p in params]
        self.inner = torch.optim.AdamW(self.masters, lr=LR, weight_decay=DECAY, fused=True)

    @torch.no_grad()
    def step(self) -> None:
        """One step."""
        for p, master in zip(self.params, self.masters, strict=True):
            assert p.grad is not None
            grad = p.grad
            if self.keep is not None and p.dim() > 1:
                magnitude = grad.abs().flatten()
                k = len(magnitude) - max(1, int(self.keep * len(magnitude))) + 1
                grad.mul_(grad.abs() >= magnitude.kthvalue(k).values)
            if master is not p:
                master.grad = grad.float()
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.masters, self.clip)
        self.inner.step()
        for p, master in zip(self.params, self.masters, strict=True):
            if master is not p:
                p.copy_(master)
        torch._foreach_zero_([p.grad for p in self.params])


def methods(params: list[nn.Parameter]) -> dict[str, tuple[Any, float]]:
    """Optimisers, and the bytes an element that a step has to read and write, with gradients of these dtypes."""
    from longspan.ops import UpdateMask
    from longspan.updates import FusedAdamW, GradientClip, GradientMaskAdamW

    options: dict[str, Any] = {"weight_decay": DECAY, "clear_gradients": True}
    matrices = [p for p in params if p.dim() > 1]
    groups = [{"params": matrices}, {"params": [p for p in params if p.dim() == 1], "keep_ratio": 1.0}]
    wide = params[0].dtype == torch.float32
    # weights, moments, gradient read and cleared; a narrow weight is written beside its master.
    step = 24.0 + (8 if wide else 2 * 2 + 2)
    read = 2 * 4.0 if wide else 2.0  # by the threshold: float32 twice
    rows = FusedAdamW(params, LR, mode="freeze", **options)
    for p in matrices:
        rows.set_mask(p, UpdateMask("rows", torch.arange(p.shape[0]).remainder(5).eq(0).to(torch.uint8)))
    return {
        OURS: (FusedAdamW(params, LR, **options), step),
        GMT: (GradientMaskAdamW(groups, LR, KEEP, **options), step + read),
        "GMT, mode update": (GradientMaskAdamW(groups, LR, KEEP, "update", **options), step + read),
        "GMT, mode freeze": (GradientMaskAdamW(groups, LR, KEEP, "freeze", **options), step + read),
        "GMT, clipped": (GradientMaskAdamW(groups, LR, KEEP, clip=1.0, **options), step + read),
        "FusedAdamW, clipped": (FusedAdamW(params, LR, clip=1.0, **options), step + read / 2 if wide else step + read),
        "components clipped": (
            FusedAdamW(params, LR, clip=GradientClip(1.0, "tensor"), **options),
            step + read / 2 if wide else step + read,
        ),
        "rows frozen (NeFT)": (rows, step),
        FUSED: (Torch(params, None), step),
        CLIPPED: (Torch(params, None, 1.0), step + read / 2 if wide else step + read),
        TORCH_GMT: (Torch(params, KEEP), step + read),
    }


def phase(dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """Seconds of a step of each method, in turns; ratios are medians over rounds."""
    model = model_of("float32" if dtype == torch.float32 else "bfloat16")
    params = list(model.parameters())
    generator = torch.Generator().manual_seed(0)
    gradients = [(1e-3 * torch.randn(p.shape, generator=generator)).to(dtype) for p in params]
    copy, copied = bandwidth()
    seconds: dict[str, list[float]] = {}
    size = sum(p.numel() for p in params)
    bytes_of: dict[str, float] = {}
    optimizers = methods(params)
    for optimizer, _ in optimizers.values():
        # One set of moments for all: times do not depend on them.
        if isinstance(optimizer, Torch):
            optimizer.masters, optimizer.inner = optimizers[FUSED][0].masters, optimizers[FUSED][0].inner
        else:
            optimizer.state = optimizers[OURS][0].state
    for number in range(rounds + 1):
        for name, (optimizer, moved) in optimizers.items():
            for p, g in zip(params, gradients, strict=True):
                p.grad = g.clone() if p.grad is None else p.grad.copy_(g)
            start = time.perf_counter()
            optimizer.step()
            spent = time.perf_counter() - start
            start = time.perf_counter()
            copy()
            rate = copied / (time.perf_counter() - start)
            if number:
                seconds.setdefault(name, []).append(spent)
                seconds.setdefault(f"{COPY} beside {name}", []).append(moved * size / rate)
            bytes_of[name] = moved

    def ratio(slow: str, fast: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))

    figures = {
        name: {
            "seconds": statistics.median(seconds[name]),
            "bytes_an_element": bytes_of[name],
            "times_the_copy_of_its_bytes": ratio(name, f"{COPY} beside {name}"),
            "times_fused_adamw": ratio(name, OURS),
            "torch_gmt_times_this": ratio(TORCH_GMT, name),
            "torch_fused_times_this": ratio(FUSED, name),
            "torch_clipped_times_this": ratio(CLIPPED, name),
        }
        for name in bytes_of
    }
    return {"parameters": size, "rounds": rounds, "gradients": str(dtype), "methods": figures}


# Whole steps.


SAVING: dict[str, Setup] = {
    "all weights": {},
    "halves (HFT)": {"update": {"engine": ADAMW, "transforms": [{"method": "hft"}]}},
    "first half of the layers and embeddings frozen": {
        "update": {
            "engine": ADAMW,
            "groups": [{"layers": list(range(15)), "freeze": True}, {"names": ["*embed_tokens*"], "freeze": True}],
        }
    },
    "gmt": {"update": {"engine": ADAMW, "transforms": [{"method": "gmt"}]}},
}


def saving(rounds: int, length: int = 1024) -> dict[str, Any]:
    """Seconds of forward and backward, and of the update, in turns."""
    from bench.lean_layers import rows
    from longspan.recipe import Recipe
    from longspan.train.optimizer import build_optimizer
    from longspan.train.run import prepare

    models, seconds = {}, {name: ([], []) for name in SAVING}  # type: ignore[var-annotated]
    for name, setup in SAVING.items():
        given = {"data": {"length": length}, "adapter": {"method": "none"}, "update": {"engine": ADAMW}} | setup
        recipe = Recipe.model_validate(given)
        model, _ = prepare(recipe)
        model.train()
        models[name] = model, build_optimizer(recipe, model)
    for number, ids in enumerate(rows(length, rounds + 1)):
        for name, (model, optimizer) in models.items():
            start = time.perf_counter()
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            between = time.perf_counter()
            optimizer.step()
            optimizer.zero_grad()
            if number:
                seconds[name][0].append(between - start)
                seconds[name][1].append(time.perf_counter() - between)
    whole = [sum(pair) for pair in zip(*seconds["all weights"], strict=True)]
    return {
        "length": length,
        "rounds": rounds,
        "runs": {
            name: {
                "forward_backward_seconds": statistics.median(first),
                "update_seconds": statistics.median(second),
                "share_of_the_step": statistics.median(
                    sum(pair) / w for pair, w in zip(zip(first, second, strict=True), whole, strict=True)
                ),
            }
            for name, (first, second) in seconds.items()
        },
    }


def mezo(length: int = 1024) -> dict[str, Any]:
    """Memory of a step against inference, bits after 20 cycles, and a run with the language model's loss."""
    from bench.lean_layers import rows
    from longspan.memory import measure
    from longspan.recipe import Recipe
    from longspan.train.run import prepare
    from longspan.updates import MeZO

    recipe = Recipe.model_validate({"data": {"length": length}, "adapter": {"method": "none"}})
    model, _ = prepare(recipe)
    model.eval()
    (ids,) = rows(length, 1)

    def loss() -> Tensor:
        with torch.no_grad():
            found: Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
        return found

    loss()
    with measure() as inference:
        loss()
    with measure() as state:
        optimizer = MeZO(model.parameters(), lr=1e-6)
    with measure() as step:
        optimizer.step(loss)
    before = [p.detach().clone() for p in model.parameters()]
    for seed in range(20):
        optimizer.measured(lambda: 0.0, 1e-3, seed)
        optimizer.measured(lambda: 0.0, -1e-3, seed)
    same = all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    del before, optimizer
    gc.collect()
    setup: Setup = {
        "data": {"length": 512, "packing": "none", "held_out": 0.05},
        "update": {"engine": {"method": "mezo", "lr": 5e-3, "eps": 1e-2, "distribution": "rademacher"}},
        "trainer": {"steps": 100, "batch": 2},
    }
    return {
        "length": length,
        "inference_peak_bytes": inference.peak_bytes,
        "step_peak_bytes": step.peak_bytes,
        "state_bytes": state.peak_bytes,
        "bits_equal_after_20_cycles": same,
        "run": train_one(setup),
    }


# Quality.


def program_text(folder: Path) -> Path:
    """The standard library's modules, one a line."""
    from longspan.data.demo import documents

    path = folder / "programs.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for name, record in documents():
            if name.startswith("Lib/"):
                file.write(json.dumps(record) + "\n")
    return path


def prose_rows(length: int, count: int) -> list[dict[str, Any]]:
    """Rows of the language reference: English, which the runs do not train on."""
    from longspan.data.demo import reference_text
    from longspan.train.model import load_model

    tokenizer = load_model("demo", "float32")[1]
    ids = tokenizer(reference_text())["input_ids"]
    every = len(ids) // count
    parts = [ids[i * every : i * every + length] for i in range(count)]
    return [{"input_ids": part, "labels": part, "doc_lengths": [length]} for part in parts]


def forgetting(final: Path) -> dict[str, Any]:
    """Loss on prose, and the share of the base model's weights that a run changed."""
    from transformers import AutoModelForCausalLM

    from longspan import data
    from longspan.train.evaluate import held_out_loss

    base, tuned = model_of(), AutoModelForCausalLM.from_pretrained(final)
    rows = prose_rows(512, 32)
    moved = whole = 0
    for a, b in zip(base.parameters(), tuned.parameters(), strict=True):
        moved += int((a != b).sum())
        whole += a.numel()
    losses = {name: held_out_loss(model, rows, data.collate) for name, model in (("before", base), ("after", tuned))}
    return {"prose_before": losses["before"], "prose_after": losses["after"], "share_changed": moved / whole}


def quality_setups() -> dict[str, Setup]:
    """By name."""
    found: dict[str, Setup] = {}
    for keep in (1.0, 0.5, 0.2, 0.1):
        transforms = [] if keep == 1 else [{"method": "gmt", "keep_ratio": keep}]
        found["all weights" if keep == 1 else f"gmt, {keep}"] = {"update": {"engine": ADAMW, "transforms": transforms}}
    for keep in (0.2,):
        transforms = [{"method": "gmt", "keep_ratio": keep, "mode": "freeze"}]
        found[f"gmt, {keep}, freeze"] = {"update": {"engine": ADAMW, "transforms": transforms}}
    found["halves (HFT)"] = {"update": {"engine": ADAMW, "transforms": [{"method": "hft"}]}}
    return found


def one_quality(name: str, setup: Setup) -> dict[str, Any]:
    """100 steps of full fine-tuning on programs."""
    with tempfile.TemporaryDirectory() as folder:
        shared: Setup = {
            "data": {"train": str(program_text(Path(folder))), "length": 512, "packing": "none", "held_out": 0.05},
            "adapter": {"method": "none"},
            "trainer": {"steps": 100, "warmup": 5, "schedule": "cosine", "clip": 1.0},
        }
        return train_one(shared | setup, more=lambda result: forgetting(result.final))


def parts(arguments: Namespace) -> dict[str, Callable[[], Any]]:
    """By name."""
    rounds = arguments.rounds
    return {
        "phase": lambda: [phase(dtype, rounds) for dtype in (torch.float32, torch.bfloat16)],
        "saving": lambda: saving(rounds),
        "mezo": mezo,
        "quality": lambda: (
            train_all(FILE, quality_setups(), arguments.only, arguments.without, one_quality)
            | {"length": 512, "steps": 100}
        ),
    }


if __name__ == "__main__":
    main(FILE, __doc__, parts)
