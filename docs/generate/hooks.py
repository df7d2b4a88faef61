"""What pages get when the site is made: the commands of `longspan`, and links from names in code to the reference."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import Any

import typer.main

from longspan.cli.main import app

COMMANDS = "<!-- commands -->"
# Code of a page that is a name of the package, maybe with arguments; what is a link or a listing already stays.
NAMES = re.compile(r"<a\b.*?</a>|<pre\b.*?</pre>|<code>(longspan(?:\.\w+)+)(?:\(.*?\))?</code>", re.DOTALL)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The commands, where a page asks for them."""
    return markdown.replace(COMMANDS, "\n".join(commands())) if COMMANDS in markdown else markdown


def on_page_content(content: str, **_: Any) -> str:
    """Names of the package link to their entry in the reference, where there is one."""

    def linked(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0]
        return f'<autoref identifier="{match[1]}" optional>{match[0]}</autoref>'

    return NAMES.sub(linked, content)


def commands() -> Iterator[str]:
    """Markdown of every command: usage, what it does, its arguments and options."""
    return _described(typer.main.get_command(app), "longspan", None, 2)


def _described(command: Any, name: str, parent: Any, level: int) -> Iterator[str]:
    context = command.context_class(command, info_name=name, parent=parent)
    path = context.command_path
    yield f"{'#' * level} {path}\n"
    yield f"    {path} {' '.join(command.collect_usage_pieces(context))}\n"
    yield f"{_cell(command.help)}\n"
    records = [record for each in command.get_params(context) if (record := each.get_help_record(context))]
    if records:
        yield "| argument or option | meaning |\n|---|---|"
        yield from (f"| <code>{_cell(option)}</code> | {_cell(meaning)} |" for option, meaning in records)
        yield ""
    for each in getattr(command, "commands", {}).values():
        yield from _described(each, each.name, context, level + 1)


def _cell(text: str) -> str:
    """Text as a cell of a table has it."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "&#124;")
