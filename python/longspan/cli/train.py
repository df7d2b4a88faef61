"""`longspan train` and `longspan merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from longspan.cli import tables


def parse_changes(pairs: list[str]) -> dict[str, Any]:
    """['trainer.steps=10', ...] as {dotted key: value}, values as YAML has them."""
    from longspan.recipe.yaml_io import parse_value

    changes: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise ValueError(f"--set takes key=value, for example trainer.steps=10, not {pair!r}")
        changes[key.strip()] = parse_value(value, f"--set {pair}")
    return changes


def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe, e.g. recipes/demo_s2.yaml.")],
    resume: Annotated[bool, typer.Option("--resume", help="Continue the newest good checkpoint of the run.")] = False,
    checkpoint: Annotated[
        Path | None, typer.Option("--resume-from", help="Continue this checkpoint, or the newest of this run.")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key, e.g. trainer.steps=10.")
    ] = None,
    evaluate: Annotated[int, typer.Option(min=0, help="Score this many held-out rows before and after training.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove an earlier run in the output folder.")] = False,
) -> None:
    """Train as a recipe says."""
    from longspan.recipe import Recipe

    loaded = Recipe.from_yaml(recipe)
    if changes:
        loaded = loaded.replace(parse_changes(changes))
    console = Console()
    console.print(tables.facts("recipe", _summary(loaded)))
    from longspan.train.run import train as run

    result = run(loaded, resume=checkpoint or resume or None, evaluate=evaluate, overwrite=overwrite)
    rows: dict[str, Any] = {
        "steps": f"{result.steps} of {loaded.trainer.steps}",
        "trainable parameters": f"{result.trainable:,}",
        "tokens/s": f"{result.tokens_per_second:.1f}",
        "peak memory": tables.size(result.peak_memory),
    }
    if result.predicted_peak is not None:
        rows["recompute"] = f"{result.recompute}, predicted peak {tables.size(result.predicted_peak)}"
    if result.losses:
        rows["loss, first and last step"] = f"{result.losses[0]:.4f}, {result.losses[-1]:.4f}"
    if result.held_out_before is not None and result.held_out_after is not None:
        rows["held-out loss"] = f"{result.held_out_before:.4f} before, {result.held_out_after:.4f} after"
    for sentence in result.broken:
        rows["passed over"] = sentence
    rows["written to"] = result.final
    console.print(tables.facts("run", rows))


def _summary(recipe: Any) -> dict[str, str]:
    data, trainer = recipe.data, recipe.trainer
    return {
        "model": f"{recipe.model} ({recipe.dtype})",
        "data": f"{data.train}: {data.format}, rows of {data.length} tokens, packing {data.packing}",
        "attention": f"train {_method(recipe.attention.train)}; prefill {_method(recipe.attention.prefill)}; "
        f"decode {_method(recipe.attention.decode)}",
        "tokens": _method(recipe.tokens),
        "ffn": f"train {_method(recipe.ffn.train)}; eval {recipe.ffn.eval}",
        "positions": _method(recipe.positions),
        "adapter": _method(recipe.adapter),
        "update": _method(recipe.update.engine),
        "memory": f"recompute {recipe.memory.recompute}"
        + ("" if recipe.memory.budget is None else f", budget {recipe.memory.budget}"),
        "steps": f"{trainer.steps} of {trainer.accumulate} x {trainer.batch} rows, {trainer.schedule} schedule",
        "output": trainer.output,
    }


def _method(config: Any) -> str:
    options = config.model_dump(exclude={"method"}, exclude_none=True)
    shown = ", ".join(
        f"{key} {' '.join(value) if isinstance(value, tuple) and value and isinstance(value[0], str) else value}"
        for key, value in options.items()
        if value != ()
    )
    return f"{config.method} ({shown})" if shown else str(config.method)


def merge(
    run: Annotated[Path, typer.Argument(help="A run's folder, or one of its checkpoints.")],
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it exists.")] = False,
    dense: Annotated[bool, typer.Option("--dense", help="Also for a routed run: a model of all blocks.")] = False,
) -> None:
    """Write what a run trained as a plain transformers checkpoint."""
    from longspan.train.merge import dense_loss, routed_run
    from longspan.train.merge import merge as write

    console, merged = Console(), write(run, out, overwrite=overwrite, dense=dense)
    console.print(f"merged into {merged}", highlight=False, soft_wrap=True)
    if dense and routed_run(run):
        loss = dense_loss(run, merged)
        said = "the run has no held-out rows" if loss is None else f"held-out loss with all blocks: {loss:.4f}"
        console.print(said, highlight=False)
