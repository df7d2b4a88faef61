"""Kernels: the newest record of every op, size and route, and how time grows with length."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from bench.compare import newest
from bench.race import exponent
from bench.results.tables import Column, Table, fixed, mb, percent, seconds

FAMILIES = {  # heading: (ops whose names start so, files of rows)
    "Attention": (("attention",), ("attention",)),
    "Attention over lists of keys": (("list_",), ("list_attention",)),
    "Codes and chosen keys": (("pq_", "topl_", "adc_"), ("pq", "topl")),
    "Block scores": (("block_score",), ("select",)),
    "Loss": (("linear_cross_entropy",), ("loss",)),
    "Linear maps with adapters": (("lora_",), ("lora",)),
    "Routed products": (("grouped_",), ("grouped",)),
    "Norms, rope, gates": (("norm_", "rope", "glu_"), ("norm", "rope", "glu")),
    "Magnitudes": (("kth_", "magnitude_", "squared_"), ("magnitude",)),
    "Optimiser steps": (("masked_",), ("update",)),
    "Noise": (("perturb_", "es_"), ("perturb",)),
}
COLUMNS = (
    Column("ms", "ms", seconds),
    Column("share", "share of the roofline", percent),
    Column(
        "ratios", "baseline / ours", lambda ratios: ", ".join(f"{name} {ratio:.2f}x" for name, ratio in ratios.items())
    ),
    Column("peak", "peak, MB", mb),
    Column("predicted", "by the formula, MB", mb),
)
NOTE = (
    "Forward and backward unless the name says otherwise. The roofline is `torch.mm`'s rate in the same rounds for "
    "products, a copy's for what memory bounds; bytes are live ones beside the inputs."
)


def _name(row: dict[str, Any]) -> str:
    op, _, dtype, sizes = row["key"].split("|", 3)
    op = op.replace("_fwd+attention_bwd", "").replace("_fwd+list_attention_bwd", "")
    op = re.sub(r"_fwd, \w+_bwd", "", op)
    route = "" if row["impl"] == "longspan.ops" else ", no torch"
    return f"`{op}` {sizes.removeprefix('B=1,').replace(',', ', ')}, {dtype}{route}"


def _figures(row: dict[str, Any]) -> dict[str, Any]:
    memory = row["memory"] or {}
    return {
        "ms": row["time_s"]["median"] * 1e3,
        "share": row["of_roofline"],
        "ratios": {name: baseline["ratio"] for name, baseline in row["baselines"].items()} or None,
        "peak": memory.get("peak_live_bytes"),
        "predicted": memory.get("predicted_bytes"),
    }


def tables(rows: Sequence[dict[str, Any]]) -> list[Table]:
    """One a family."""
    found = []
    rows = newest(rows)
    left = {id(row) for row in rows}
    for heading, (prefixes, files) in FAMILIES.items():
        own = [row for row in rows if row["key"].startswith(prefixes)]
        left -= {id(row) for row in own}
        if own:
            command = "python -m pytest " + " ".join(f"bench/test_{file}.py" for file in files)
            found.append(
                Table(heading, NOTE, command, COLUMNS, {_name(row): _figures(row) for row in own}, own[-1]["env"])
            )
    if left:
        raise ValueError(f"no family for {sorted(row['key'] for row in rows if id(row) in left)}; see FAMILIES")
    return found


def growth(rows: Sequence[dict[str, Any]]) -> list[Table]:
    """Exponents of time over length, of rows that differ in nothing else."""
    series: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for row in newest(rows):
        length = re.search(r"\bT=(\d+)", row["key"])
        if length and row["impl"] == "longspan.ops":
            rest = row["key"].replace(length[0], "T")
            series.setdefault((rest, row["mode"]), {})[int(length[1])] = row
    found, environment = {}, {}
    for (rest, _), by_length in series.items():
        if len(by_length) < 3:
            continue
        lengths = sorted(by_length)
        medians = [by_length[n]["time_s"]["median"] for n in lengths]
        name = f"`{rest.split('|')[0].split('_fwd')[0]}` {rest.split('|', 3)[3].split('pattern=')[-1]}"
        found[name] = {"from": lengths[0], "to": lengths[-1], "exponent": exponent(lengths, medians)}
        environment = by_length[lengths[-1]]["env"]
    columns = (
        Column("from", "from", str),
        Column("to", "to tokens", str),
        Column("exponent", "time grows as T to the", fixed(2)),
    )
    note = "The slope of log time over log length by least squares; dense attention has 2."
    return [Table("Growth with length", note, "python -m pytest bench/test_attention.py", columns, found, environment)]
