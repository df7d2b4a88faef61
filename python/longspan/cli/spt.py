"""`longspan spt`: what sparse attention and the routed feed-forward keep of a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from longspan.cli.errors import Group
from longspan.cli.lemo import Changes, check_writable
from longspan.cli.train import parse_changes

spt = typer.Typer(cls=Group, no_args_is_help=True, help="What sparse attention and the routed feed-forward keep.")


@spt.callback()
def _group() -> None:
    """What sparse attention and the routed feed-forward keep."""


@spt.command()
def inspect(
    recipe: Annotated[Path, typer.Argument(help="A recipe with attention.train: pq or ffn.train: routed.")],
    out: Annotated[Path, typer.Option("--out", help="The picture, .png.")],
    trained: Annotated[Path | None, typer.Option(help="A run's folder: its weights, codebooks and routers.")] = None,
    text: Annotated[Path | None, typer.Option(help="A text file; default the first held-out row.")] = None,
    changes: Changes = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the picture if it exists.")] = False,
) -> None:
    """Per layer: attention mass kept, recall of exact top-L, use of codewords, load of blocks; a table and a plot."""
    check_writable(out, ".png", overwrite)
    from longspan.analysis import layers, spt
    from longspan.recipe import Recipe
    from longspan.train import weights
    from longspan.train.merge import trained_folder
    from longspan.train.run import look, prepare

    loaded = Recipe.from_yaml(recipe)
    loaded = loaded.replace(parse_changes(changes)) if changes else loaded
    wanted = spt.inspected(loaded)
    model, tokenizer = prepare(wanted)
    rows = layers.rows_of(wanted, model, tokenizer)
    if trained is None:
        look(model, rows, wanted)
    else:
        weights.load(model, trained_folder(trained.expanduser()), wanted)
    row = (
        layers.text_row(text, tokenizer, wanted) if text else layers.rows_of(wanted, model, tokenizer, held_out=True)[0]
    )
    figures = spt.inspect(model, wanted, row)
    spt.draw(figures, out, f"{len(row['input_ids'])} tokens")
    console = Console()
    console.print(_table(figures))
    console.print(f"drawn to {out}", soft_wrap=True)


def _table(figures: dict[int, Any]) -> Table:
    table = Table(title="by layer, and the mean", title_justify="left")
    for name in ("layer", "mass kept", "exact top-L", "share of it", "recall", "codeword entropy", "block loads"):
        table.add_column(name, justify="right")
    sums: list[list[float]] = []
    for number, layer in figures.items():
        cells = ["-"] * 5
        if layer.kept is not None:
            kept = layer.kept
            values = [kept.mass, kept.best, kept.mass / kept.best, kept.recall, layer.entropy]
            sums.append(values)
            cells = [f"{value:.3f}" for value in values]
        load = "-" if layer.load is None else " ".join(f"{share:.2f}" for share in layer.load)
        table.add_row(str(number), *cells, load)
    if sums:
        means = [f"{sum(column) / len(sums):.3f}" for column in zip(*sums, strict=True)]
        table.add_section()
        table.add_row("mean", *means, "")
    return table
