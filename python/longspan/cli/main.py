"""The `longspan` command."""

from __future__ import annotations

from typing import Annotated

import typer

import longspan
from longspan.cli import checkout
from longspan.cli.errors import Group
from longspan.cli.evaluate import evaluate
from longspan.cli.lemo import lemo
from longspan.cli.plan import plan
from longspan.cli.spt import spt
from longspan.cli.train import merge, train

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Fine-tune Hugging Face causal language models on long contexts.",
)

_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"longspan {longspan.__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Fine-tune Hugging Face causal language models on long contexts."""


app.command()(train)
app.command()(plan)
app.command("eval")(evaluate)
app.command()(merge)
app.add_typer(lemo, name="lemo")
app.add_typer(spt, name="spt")


@app.command()
def report() -> None:
    """Print versions, what was built, and which operator has which backend."""
    from longspan.report import text

    typer.echo(text())


@app.command(context_settings=_PASS_ON)
def demo(ctx: typer.Context) -> None:
    """Run the demo of the source checkout; further arguments go to it (try --help)."""
    checkout.run_module("bench.demo", ctx.args)


@app.command(context_settings=_PASS_ON)
def bench(ctx: typer.Context) -> None:
    """Run the benchmarks of the source checkout; further arguments go to them (try --help)."""
    checkout.run_module("bench", ctx.args)


if __name__ == "__main__":
    app()
