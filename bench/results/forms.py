"""Parts of a method by themselves: forms of sparse attention, halves of a layer, the routed branch, frozen weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.results.methods import SECONDS, table_of
from bench.results.tables import Column, Table, fixed, loss, mb, percent, seconds, times

ATTENTION = (
    SECONDS,
    Column("faster_than_dense", "of our dense engine's speed", times),
    Column("faster_than_sdpa", "of torch SDPA's speed", times),
    Column("saved_bytes", "saved beside q, k, v, out, MB", mb),
)


def attention(records: Mapping[str, Any]) -> list[Table]:
    """Forms mask, block and list."""
    spt = records["spt"]
    found = []
    note = "Forward and backward, 9 query and 3 key/value heads of 64, the choice of keys included."
    results = {
        "mask": spt["mask"]["result"]["lengths"],
        "block": [spt["block"]["result"]],
        "list": [spt["list"]["result"]],
    }
    for part, each in results.items():
        for result in each:
            title = f"Attention by codes, form {part}, {result['length']} tokens"
            found.append(table_of(records, "spt", part, title, note, ATTENTION, result["ways"]))
    first = spt["first"]["result"]
    rows = {name: {"loss": value, "of_dense": first["of_dense"][name]} for name, value in first["losses"].items()}
    columns = (Column("loss", "loss", loss), Column("of_dense", "of dense", fixed(3)))
    note = f"Mean of {first['rows']} rows of {first['length']} tokens, before any training."
    found.append(table_of(records, "spt", "first", "Loss of the first step by selector", note, columns, rows))
    return found


def layers(records: Mapping[str, Any]) -> list[Table]:
    """Halves of a layer and the routed branch."""
    found = []
    columns = (
        SECONDS,
        Column("faster_than_dense", "of the dense half's speed", times),
        Column("bytes_per_token", "bytes kept a token", fixed(0)),
    )
    for result in records["lemo"]["layer"]["result"]:
        title = f"Halves of layer {result['layer']} under token elimination, {result['length']} tokens"
        note = "Forward and backward, 0.4 of the blocks kept."
        found.append(table_of(records, "lemo", "layer", title, note, columns, _by_name(result, columns)))
    recall = records["lemo"]["recall"]["result"]
    rows = {f"layer {layer}": {"recall": value} for layer, value in recall["recall"].items()}
    rows["mean"] = {"recall": recall["mean"]}
    note = f"Of held-out text at {recall['length']} tokens, against the layers' exact block scores."
    columns = (Column("recall", "recall", fixed(3)),)
    found.append(table_of(records, "lemo", "recall", "Recall of the trained predictors", note, columns, rows))
    columns = (
        SECONDS,
        Column("faster_than_dense", "of the dense branch's speed", times),
        Column("kept_of_dense", "bytes kept of it", fixed(2)),
    )
    for result in records["spt"]["ffn"]["result"]["sizes"]:
        title = f"Routed feed-forward, C={result['C']}, F={result['F']}"
        note = f"Forward and backward of {result['rows']} rows, 2 of 4 blocks, adapters, router and plan included."
        found.append(table_of(records, "spt", "ffn", title, note, columns, _by_name(result, columns)))
    return found


def freezing(records: Mapping[str, Any]) -> list[Table]:
    """Whole steps with frozen weights, and MeZO."""
    saving = records["updates"]["saving"]["result"]
    columns = (
        Column("forward_backward_seconds", "forward and backward, seconds", seconds),
        Column("update_seconds", "update, seconds", seconds),
        Column("share_of_the_step", "of the whole step", percent),
    )
    note = f"Full fine-tuning of SmolLM2-135M, a row of {saving['length']} tokens."
    found = [table_of(records, "updates", "saving", "What frozen weights save", note, columns, saving["runs"])]
    mezo = records["updates"]["mezo"]["result"]
    columns = (
        Column("step_peak_bytes", "peak of a step, MB", mb),
        Column("inference_peak_bytes", "of a forward", mb),
        Column("state_bytes", "masters beside both", mb),
        Column("held_out_before", "held-out loss before", loss),
        Column("held_out_after", "after 100 steps of an adapter", loss),
    )
    rows = {f"{mezo['length']} tokens": {key: value for key, value in mezo.items() if key != "run"} | mezo["run"]}
    note = (
        "Two forwards a step, nothing saved for a backward; 20 perturbations and returns change no bit of any weight."
    )
    found.append(table_of(records, "updates", "mezo", "MeZO", note, columns, rows))
    return found


def _by_name(result: Mapping[str, Any], columns: tuple[Column, ...]) -> dict[str, dict[str, Any]]:
    """Rows of figures that were recorded by column."""
    keys = [column.key for column in columns if column.key in result]
    return {name: {key: result[key].get(name) for key in keys} for name in result["seconds"]}
