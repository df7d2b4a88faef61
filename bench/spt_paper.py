"""SPT's own comparison: one OPT block of width 2048 with 32 heads, 16 rows of 512 tokens: full tuning, LoRA, SPT.

The paper's first table (arXiv 2312.10365) gives time and peak of its attention and feed-forward on a GPU; here it is
one step of the whole block, on this machine, and only ratios can be compared.
"""

from __future__ import annotations

import gc
import statistics
import time
from typing import Any

import torch

import longspan
from bench.lean_layers import REST
from longspan.memory import measure

WIDTH, HIDDEN, HEADS, LENGTH, BATCH, RANK = 2048, 8192, 32, 512, 16, 16
PAPER = {  # milliseconds and GB of a block: attention and feed-forward together
    "full tuning": {"ms": 188.4, "peak_gb": 3.2},
    "LoRA": {"ms": 161.0, "peak_gb": 2.7},
    "SPT": {"ms": 106.0, "peak_gb": 1.6},
}
PQ = {"method": "pq", "scorer": "match", "sinks": 0, "window": 0.0}
ROUTED = {"method": "routed", "blocks": 4, "active": 2, "calibrate": False}
WAYS: dict[str, tuple[bool, dict[str, Any] | None]] = {  # LoRA or full tuning, recipe keys; None is the stock model
    "full tuning, Hugging Face": (False, None),
    "LoRA, Hugging Face + PEFT": (True, None),
    "full tuning, longspan": (False, {}),
    "LoRA, longspan": (True, {}),
    "SPT attention": (True, {"attention": {"train": PQ}}),
    "SPT feed-forward": (True, {"ffn": {"train": ROUTED}}),
    "SPT": (True, {"attention": {"train": PQ}, "ffn": {"train": ROUTED}}),
    "SPT, form block, adc": (
        True,
        {"attention": {"train": {"method": "pq", "form": "block"}}, "ffn": {"train": ROUTED}},
    ),
}


def block(lora: bool, recipe: dict[str, Any] | None) -> Any:
    """A model of one block and a small vocabulary."""
    from peft import LoraConfig, get_peft_model
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "word_embed_proj_dim": WIDTH, "ffn_dim": HIDDEN, "num_attention_heads": HEADS}
    none = {"dropout": 0.0, "attention_dropout": 0.0}
    model: Any = OPTForCausalLM(
        OPTConfig(vocab_size=128, num_hidden_layers=1, max_position_embeddings=LENGTH, **sizes, **none)
    )
    model.config.use_cache = False
    if lora:
        targets = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
        model = get_peft_model(
            model, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets, task_type="CAUSAL_LM")
        )
    if recipe is not None:
        longspan.patch(model, {"data": {"length": LENGTH}} | recipe)
    return model.train()


def paper(rounds: int) -> dict[str, Any]:
    """Seconds and peak of a step with AdamW, all in turn."""
    ids = torch.randint(3, 128, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    models = {name: block(*way) for name, way in WAYS.items()}
    optimizers = {
        name: torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)
        for name, model in models.items()
    }

    def step(name: str) -> None:
        models[name](input_ids=ids, labels=ids).loss.backward()
        optimizers[name].step()
        optimizers[name].zero_grad()

    seconds: dict[str, list[float]] = {name: [] for name in models}
    peaks: dict[str, int] = {}
    for turn in range(rounds + 1):
        for name in models:
            gc.collect()
            time.sleep(REST)
            if turn == 0:
                step(name)  # the optimiser's state
                with measure() as live:
                    step(name)
                peaks[name] = live.peak_bytes
                continue
            start = time.perf_counter()
            step(name)
            seconds[name].append(time.perf_counter() - start)
    base = "LoRA, Hugging Face + PEFT"
    return {
        "paper": PAPER,
        "ways": {
            name: {
                "seconds": statistics.median(times),
                "faster_than_lora": statistics.median(b / s for b, s in zip(seconds[base], times, strict=True)),
                "peak_bytes": peaks[name],
                "peak_of_lora": peaks[name] / peaks[base],
            }
            for name, times in seconds.items()
        },
    }
