"""`longspan lemo`: predictors, thresholds and pictures of token elimination."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from longspan.cli.errors import Group
from longspan.cli.evaluate import progress_bar
from longspan.cli.train import parse_changes

lemo = typer.Typer(cls=Group, no_args_is_help=True, help="Predictors, thresholds and pictures of token elimination.")

RecipeFile = Annotated[Path, typer.Argument(help="A recipe: its model, data and tokens section count.")]
Changes = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the recipe.")]


def _subject(recipe: Path, changes: list[str] | None) -> Any:
    from longspan.analysis.layers import bare, subject_of
    from longspan.recipe import Recipe
    from longspan.train.run import prepare

    loaded = Recipe.from_yaml(recipe)
    loaded = loaded.replace(parse_changes(changes)) if changes else loaded
    return subject_of(loaded, *prepare(bare(loaded)))


def check_writable(out: Path, suffix: str, overwrite: bool) -> None:
    """Raises ValueError for a name of another kind, or of a file that exists."""
    if out.suffix != suffix:
        raise ValueError(f"--out {out} must end in {suffix}")
    if out.exists() and not overwrite:
        raise ValueError(f"--out {out} exists; choose another name or pass --overwrite")


@lemo.command("train-predictor")
def train_predictor(
    recipe: RecipeFile,
    out: Annotated[Path, typer.Option("--out", help="The predictors' file, .safetensors.")],
    steps: Annotated[int, typer.Option(min=1, help="Steps of one row each.")] = 450,
    lr: Annotated[float, typer.Option(min=0, help="Largest learning rate.")] = 1e-3,
    width: Annotated[int, typer.Option(min=1, help="Hidden units of the second layer before pruning.")] = 128,
    replays: Annotated[int, typer.Option(min=0, help="Rows of before that each step learns from again.")] = 3,
    prune_every: Annotated[int, typer.Option(min=0, help="Steps between prunings; 0 prunes nothing.")] = 100,
    rows: Annotated[int, typer.Option(min=1, help="Held-out rows that recall is measured on.")] = 8,
    changes: Changes = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
) -> None:
    """Train predictors of the block scores of a frozen model, and measure their recall on held-out rows."""
    check_writable(out, ".safetensors", overwrite)
    from dataclasses import replace

    from longspan.analysis import predictors, recall

    subject = _subject(recipe, changes)
    held_out = subject.rows(held_out=True)
    settings = predictors.Settings(steps=steps, lr=lr, width=width, replays=replays, prune_every=prune_every)
    file: Any = None
    with progress_bar("training predictors") as move:
        for found in predictors.train(subject, settings):
            if isinstance(found, predictors.Progress):
                move(found.step, steps)
            else:
                file = found
    shares = recall.mean_recall(subject, held_out, file, rows)
    file = replace(file, about=file.about | {"recall": shares})
    file.write(out)
    console = Console()
    console.print(_recalls(shares, file.about["hidden_units"]))
    console.print(f"mean recall {sum(shares.values()) / len(shares):.3f}; written to {out}", soft_wrap=True)


@lemo.command()
def thresholds(
    recipe: RecipeFile,
    out: Annotated[Path, typer.Option("--out", help="The thresholds' file, .json.")],
    rows: Annotated[int, typer.Option(min=1, help="Held-out rows that losses are measured on.")] = 4,
    cost: Annotated[float, typer.Option(min=0, help="Nats that keeping every block would be worth to save.")] = 1.0,
    least: Annotated[float, typer.Option(min=0, max=1, help="Share of a layer's blocks to keep at least.")] = 0.2,
    rate: Annotated[float, typer.Option(min=0, help="Step along the difference.")] = 0.1,
    changes: Changes = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
) -> None:
    """Search a threshold for each layer: one sweep of finite differences of loss and cost."""
    check_writable(out, ".json", overwrite)
    from longspan.analysis import thresholds as searching

    subject = _subject(recipe, changes)
    table = Table(title="thresholds, as shares of a layer's highest score", title_justify="left")
    for name in ("layer", "start", "found", "blocks kept"):
        table.add_column(name, justify="right")
    settings = searching.Settings(rows=rows, cost=cost, least=least, rate=rate)
    with progress_bar("searching thresholds") as move:
        done = 0
        for found in searching.search(subject, settings):
            if isinstance(found, searching.Found):
                done += 1
                move(done, len(subject.chosen))
                table.add_row(str(found.number), f"{found.before:.3f}", f"{found.after:.3f}", f"{found.kept:.0%}")
            else:
                found.write(out)
    console = Console()
    console.print(table)
    console.print(f"written to {out}", soft_wrap=True)


@lemo.command()
def inspect(
    recipe: RecipeFile,
    out: Annotated[Path, typer.Option("--out", help="The picture, .png.")],
    text: Annotated[Path | None, typer.Option(help="A text file; default the first held-out row.")] = None,
    predictor: Annotated[Path | None, typer.Option(help="Predictors to compare; default tokens.predictor.")] = None,
    changes: Changes = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the picture if it exists.")] = False,
) -> None:
    """Draw which blocks of a text each layer keeps, and print the predictor's recall of them."""
    check_writable(out, ".png", overwrite)
    from longspan.analysis import layers, recall
    from longspan.patch.tokens.predictor_file import read_predictor
    from longspan.tokens.lemo import UNTRAINED

    subject = _subject(recipe, changes)
    named = subject.method.predictor
    path = predictor or (Path(named).expanduser() if named and named != UNTRAINED else None)
    file = None if path is None else read_predictor(path)
    row = layers.text_row(text, subject.tokenizer, subject.recipe) if text else subject.rows(held_out=True)[0]
    kept = recall.keep(subject, row, file)
    recall.draw(kept, out, f"blocks of {subject.method.block} tokens, {subject.method.keep_ratio:g} of them kept")
    console = Console()
    if kept.predicted:
        console.print(_recalls({number: kept.recall(number) for number in kept.predicted}, None))
    console.print(f"drawn to {out}", soft_wrap=True)


def _recalls(shares: dict[int, float], widths: dict[int, tuple[int, ...]] | None) -> Table:
    table = Table(title="against exact scores", title_justify="left")
    for name in ("layer", "recall", *(("hidden units",) if widths else ())):
        table.add_column(name, justify="right")
    for number, share in shares.items():
        more = [" ".join(map(str, widths[number]))] if widths else []
        table.add_row(str(number), f"{share:.3f}", *more)
    return table
