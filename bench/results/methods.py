"""Training: what the parts of bench/lean_layers, lemo, spt, updates, long_context and memory_plan recorded."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from bench.results.tables import Column, Table, fixed, gib, loss, mb, percent, seconds, times

SECONDS = Column("seconds", "seconds", seconds)
STEPS = (
    SECONDS,
    Column("faster_than_baseline", "of Hugging Face + PEFT's speed", times),
    Column("faster_than_dense", "of our dense speed", times),
    Column("first_loss", "loss of the first step", loss),
)
KEPT = (
    Column("bytes_per_token", "bytes kept a token", fixed(0)),
    Column("share_of_dense", "of our dense", fixed(2)),
)
QUALITY = (
    Column("held_out_before", "held-out loss before", loss),
    Column("held_out_after", "after", loss),
    Column("held_out_sparse", "after, evaluated as trained", loss),
    Column("seconds_a_step", "seconds a step, one core of a busy machine", seconds),
)
UPDATES = (
    SECONDS,
    Column("times_the_copy_of_its_bytes", "copies of its bytes", fixed(2)),
    Column("torch_fused_times_this", "`AdamW(fused=True)` / this", times),
    Column("torch_clipped_times_this", "with `clip_grad_norm_` / this", times),
)
FITS = Column("fits", "fits", lambda fits: "yes" if fits else "no")
BASELINE = "Hugging Face + PEFT + SDPA"


def table_of(
    records: Mapping[str, Any], file: str, part: str, title: str, note: str, columns: tuple[Column, ...], rows: Any
) -> Table:
    """A table of a part of a file."""
    return Table(title, note, f"python -m bench.{file} {part}", columns, rows, records[file][part]["environment"])


def demo(records: Mapping[str, Any]) -> list[Table]:
    """What `make demo` printed."""
    record = records["demo"]
    columns = (
        Column("seconds_per_step", "seconds a step", seconds),
        Column("peak_memory", "peak memory, GiB", gib),
        Column("held_out_before", "held-out loss before", loss),
        Column("held_out_after", "after", loss),
    )
    note = "SmolLM2-135M, adapters, embeddings and norms, each in its own process, evaluated with full attention."
    rows = {run["name"]: run for run in record["runs"]}
    steps, tokens = record["runs"][0]["steps"], record["runs"][0]["tokens_per_step"]
    return [Table(f"{steps} steps of {tokens} tokens", note, "make demo", columns, rows, record["environment"])]


def long_context(records: Mapping[str, Any]) -> list[Table]:
    """Rows twice as long as the model was made for."""
    record = records["long_context"]
    settings, rows = record["settings"], {}
    for name, entry in record.items():
        if name in ("settings", "environment"):
            continue
        run = entry.get("run") or entry.get("figures") or {}
        scores = entry.get("scores", {}).get("perplexity", {})
        rows[name] = {length: score["ppl"] for length, score in scores.items()}
        rows[name] |= {"seconds": statistics.median(run["seconds"])} if run else {}
        rows[name] |= {"peak_memory": run["peak_memory"]} if run else {}
        rows[name]["fits"] = entry.get("fits", True)
    lengths = [Column(str(n), f"perplexity looking back {n}", fixed(2)) for n in settings["lengths"]]
    columns = (
        FITS,
        Column("seconds", "seconds a step", seconds),
        Column("peak_memory", "peak memory, GiB", gib),
        *lengths,
    )
    title = f"{settings['steps']} steps of {settings['length']} tokens, twice the model's context"
    note = f"Position interpolation, layers recomputed; perplexity of {settings['documents']} held-out documents."
    command = f"python -m bench.long_context --steps {settings['steps']} --documents {settings['documents']}"
    return [Table(title, note, command, columns, rows, record["environment"])]


def steps(records: Mapping[str, Any]) -> list[Table]:
    """Seconds of training steps."""
    found = []
    note = "SmolLM2-135M, LoRA rank 8 on q, k, v, o, one row, all in turns; medians."
    for result in records["lean_layers"]["steps"]["result"]:
        rows = {
            name: {"seconds": way["seconds"], "faster_than_baseline": way["faster"]}
            for name, way in result["competitors"].items()
        }
        title = f"A step at {result['length']} tokens: layers and attention"
        found.append(table_of(records, "lean_layers", "steps", title, note, STEPS[:2], rows))
    for file, what in (("lemo", "token elimination"), ("spt", "codes and routed feed-forward")):
        for part in ("steps", "long"):
            if part not in records[file]:
                continue
            result = records[file][part]["result"]
            rows = {name: dict(way) for name, way in result["competitors"].items()}
            if BASELINE in rows:
                for way in rows.values():
                    way.setdefault("faster_than_baseline", rows[BASELINE]["seconds"] / way["seconds"])
            title = f"A step at {result['length']} tokens: {what}"
            found.append(table_of(records, file, part, title, note, STEPS, rows))
    paper = records["spt"]["paper"]["result"]
    columns = (
        SECONDS,
        Column("faster_than_lora", "of the speed of LoRA by Hugging Face + PEFT", times),
        Column("peak_bytes", "peak, MB", mb),
        Column("peak_of_lora", "of its peak", fixed(2)),
    )
    title, note = "One block of SPT's size", "OPT, width 2048, 32 heads, 16 rows of 512 tokens, AdamW; a whole step."
    found.append(table_of(records, "spt", "paper", title, note, columns, paper["ways"]))
    return found


def longest(records: Mapping[str, Any]) -> list[Table]:
    """Rows that fit into the machine, and what was saved a token."""
    rows = {}
    for run in sorted(records["lean_layers"]["longest"]["result"], key=lambda run: run["length"]):
        attention = (
            "full attention"
            if run["attention"] is None
            else "{method} of {size}, {sinks} sinks".format(**run["attention"])
        )
        name = f"{run['competitor']}, {attention}, {run['length']} tokens"
        rows[name] = {"fits": run["fits"]} | (run["figures"] or {})
    columns = (
        FITS,
        Column("peak_rss", "largest resident set, GiB", gib),
        SECONDS,
    )
    note = "One step each in its own process that may allocate 22 GiB."
    found = [table_of(records, "lean_layers", "longest", "The longest rows", note, columns, rows)]
    note = "Live bytes that a layer stack keeps for the backward, by torch's allocator, over tokens."
    rows = records["lean_layers"]["kept"]["result"]["competitors"]
    columns = (KEPT[0], Column("share", "of Hugging Face + PEFT", fixed(2)))
    found.append(table_of(records, "lean_layers", "kept", "What layers keep", note, columns, rows))
    rows = records["lemo"]["kept"]["result"]["competitors"]
    found.append(table_of(records, "lemo", "kept", "What token methods keep", note, KEPT, rows))
    return found


def quality(records: Mapping[str, Any]) -> list[Table]:
    """Held-out losses after the same steps."""
    found = []
    note = "The same 60 steps at 2048 tokens, evaluated on 16 held-out rows with dense attention and all tokens."
    titles = {"lemo": "Token elimination", "spt": "Codes and routed feed-forward"}
    for file, title in titles.items():
        if "quality" in records[file]:
            runs = records[file]["quality"]["result"]["runs"]
            found.append(table_of(records, file, "quality", f"{title}: held-out loss", note, QUALITY, runs))
    if "quality" in records["updates"]:
        columns = (
            *QUALITY[:2],
            Column("prose_before", "loss on prose before", loss),
            Column("prose_after", "after", loss),
            Column("share_changed", "weights that changed", percent),
        )
        note = "100 steps of full fine-tuning on programs, 512 tokens; prose is what may be forgotten."
        runs = records["updates"]["quality"]["result"]["runs"]
        found.append(
            table_of(records, "updates", "quality", "Gradient masks and halves: held-out loss", note, columns, runs)
        )
    result = records["spt"]["mass"]["result"]
    columns = (Column("mass", "attention mass", fixed(3)), Column("of_exact", "of exact top-L's", fixed(3)))
    note = f"Of held-out text at {result['length']} tokens, an eighth of the keys, mean over layers."
    found.append(table_of(records, "spt", "mass", "Attention mass that is kept", note, columns, result["selectors"]))
    return found


def updates(records: Mapping[str, Any]) -> list[Table]:
    """Optimiser phases."""
    found = []
    for result in records["updates"]["phase"]["result"]:
        dtype = result["gradients"].removeprefix("torch.")
        title = f"One optimiser step, gradients in {dtype}"
        note = f"{result['parameters'] / 1e6:.1f} million parameters, gradients cleared; bfloat16 has float32 masters."
        found.append(table_of(records, "updates", "phase", title, note, UPDATES, result["methods"]))
    return found


def memory(records: Mapping[str, Any]) -> list[Table]:
    """Predicted against measured peaks."""
    record = records["memory_plan"]
    rows = {f"{row['length']} tokens, recompute {row['recompute']}": row for row in record["rows"]}
    columns = (
        Column("predicted_bytes", "predicted, GiB", gib),
        Column("live_bytes", "live, GiB", gib),
        Column("growth_with_a_budget_bytes", "growth of the process with a budget", gib),
        Column("growth_bytes", "without", gib),
    )
    note = f"`longspan plan` for the recipe {record['recipe']}, and {record['steps']} real steps."
    return [Table("Predicted and measured memory", note, "python -m bench.memory_plan", columns, rows, record["env"])]
