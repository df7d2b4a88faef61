"""What a user's mistake looks like on the command line: one clear line, exit code 2."""

from __future__ import annotations

from typing import Any

import typer
import typer.core
from rich.console import Console

# A user's mistake or the machine's state; anything else is a defect of longspan and keeps its traceback.
EXPECTED = (ValueError, OSError, ImportError, FloatingPointError)


class Group(typer.core.TyperGroup):
    """Command group that prints expected errors as one red line; ``--debug`` shows their traceback instead."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except RuntimeError as error:
            if not hasattr(error, "exit_code"):  # an end that was asked for has its own
                raise
            tell(error)
            raise typer.Exit(error.exit_code) from error
        except EXPECTED as error:
            if ctx.params.get("debug"):
                raise
            tell(error)
            raise typer.Exit(2) from error


def tell(error: BaseException) -> None:
    """Print an error to standard error, as it is: no markup, no wrapping."""
    text = str(error) or type(error).__name__
    Console(stderr=True).print(f"error: {text}", style="bold red", markup=False, highlight=False, soft_wrap=True)
