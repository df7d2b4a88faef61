"""`longspan plan`."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from longspan.cli.train import parse_changes


class Device(str, enum.Enum):
    """Where the run would be."""

    cpu = "cpu"
    cuda = "cuda"


def plan(
    recipe: Annotated[Path, typer.Argument(help="A recipe, e.g. recipes/demo_s2.yaml.")],
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="What may be used, e.g. 24GiB; default memory.budget, or what is free."),
    ] = None,
    length: Annotated[int | None, typer.Option(min=16, help="Tokens in a row; default data.length.")] = None,
    device: Annotated[Device | None, typer.Option(help="Need not be there; default what training would use.")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key, e.g. trainer.batch=2.")
    ] = None,
    compare: Annotated[bool, typer.Option(help="Also predict what other choices would need.")] = True,
    out: Annotated[Path | None, typer.Option("--json", help="Also write the results to this file.")] = None,
) -> None:
    """Predict the memory of a training step and the longest rows that fit; only the model's config is loaded."""
    from longspan.recipe import Recipe
    from longspan.recipe.sections import AUTO
    from longspan.recipe.sizes import parse_size

    loaded = Recipe.from_yaml(recipe)
    wanted = parse_changes(changes or []) | ({} if length is None else {"data.length": length})
    loaded = loaded.replace(wanted) if wanted else loaded
    budget = loaded.memory.budget_bytes
    if memory is not None:
        try:
            budget = parse_size(memory)
        except ValueError as error:
            raise ValueError(f"--memory {error}") from None

    from longspan import folders
    from longspan import plan as planner
    from longspan.train import memory as system
    from longspan.train.planning import subject_of

    budget = system.available() if budget is None else budget
    subject = subject_of(loaded, device=None if device is None else device.value)
    console = Console()
    with Console(stderr=True).status("dry runs") as status:
        if loaded.memory.recompute == AUTO:
            subject = subject.replace({"memory.recompute": planner.least_recompute(subject, budget)[0]})
        prediction = planner.predict(subject)
        status.update("dry runs: the longest rows")
        longest = planner.largest_length(subject, budget)
        console.print(_title(subject), highlight=False)
        console.print(_breakdown(prediction, budget, longest))
        status.update("dry runs: other choices")
        rows: list[Any] = list(planner.choices(subject, prediction)) if compare else []
    if rows:
        console.print(_comparison(rows, budget))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        folders.write_file(out, json.dumps(_as_data(subject, prediction, budget, longest, rows), indent=1) + "\n")


def binary(count: float) -> str:
    """Bytes in powers of two, as memory is sold: '1.25 GiB'."""
    for unit, step in (("GiB", 2**30), ("MiB", 2**20)):
        if abs(count) >= step:
            return f"{count / step:.2f} {unit}"
    return f"{count / 2**10:.1f} KiB"


def _title(subject: Any) -> str:
    recipe = subject.recipe
    rows = f"{recipe.trainer.batch} x {recipe.data.length} tokens"
    memory = f"recompute {recipe.memory.recompute}, offload {recipe.memory.offload}"
    return f"{recipe.model}: {rows}, {recipe.dtype}, {memory}, {subject.machine.device}"


def _breakdown(prediction: Any, budget: int, longest: int | None) -> Table:
    table = Table(show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    from longspan.plan.parts import PARTS

    for name, count in prediction.parts.items():
        if count:
            table.add_row(f"saved: {name}" if name in PARTS else name, binary(count))
    table.add_section()
    table.add_row(f"peak ({prediction.segment})", binary(prediction.peak), style="bold")
    table.add_row("may be used", binary(budget))
    if prediction.host:
        table.add_row("in host memory", binary(prediction.host))
    table.add_row("longest rows that fit", "none" if longest is None else f"{longest:,} tokens", style="bold")
    return table


def _comparison(rows: list[Any], budget: int) -> Table:
    table = Table(title="with one choice changed", title_justify="left")
    table.add_column("choice", style="cyan")
    for name in ("peak", "change", "saved", "fits"):
        table.add_column(name, justify="right", no_wrap=True)
    base = rows[0].prediction.peak
    for row in rows:
        if row.prediction is None:
            table.add_row(row.name, "-", "-", "-", row.error)
            continue
        change = "" if row.now else f"{(row.prediction.peak - base) / base:+.1%}"
        fits = "yes" if row.prediction.peak <= budget else "no"
        table.add_row(row.name, binary(row.prediction.peak), change, binary(row.prediction.saved), fits)
    return table


def _as_data(subject: Any, prediction: Any, budget: int, longest: int | None, rows: list[Any]) -> dict[str, Any]:
    recipe = subject.recipe
    return {
        "model": recipe.model,
        "length": recipe.data.length,
        "batch": recipe.trainer.batch,
        "recompute": recipe.memory.recompute,
        "offload": recipe.memory.offload,
        "device": subject.machine.device,
        "budget_bytes": budget,
        "peak_bytes": prediction.peak,
        "peak_in": prediction.segment,
        "parts_bytes": prediction.parts,
        "host_bytes": prediction.host,
        "segments_bytes": prediction.segments,
        "largest_length": longest,
        "choices": [
            {
                "name": row.name,
                "now": row.now,
                "peak_bytes": None if row.prediction is None else row.prediction.peak,
                "saved_bytes": None if row.prediction is None else row.prediction.saved,
                "error": row.error,
            }
            for row in rows
        ],
    }
