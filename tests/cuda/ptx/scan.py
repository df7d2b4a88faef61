"""Cuts PTX text into items of the module and statements of a body, each with its line."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from tests.cuda.ptx.errors import ParseError

_COMMENT = re.compile(r'"[^"\n]*"|//[^\n]*|/\*.*?\*/', re.DOTALL)
_LABEL = re.compile(r"([A-Za-z_$%][\w$]*)\s*:(?!:)")
_SPACE = re.compile(r"\s+")
# Directives that end with their line rather than with a semicolon.
_LINE_DIRECTIVES = ("version", "target", "address_size", "file", "loc", "minnctapersm", "section")
_LINE_DIRECTIVE = re.compile(r"\.(" + "|".join(_LINE_DIRECTIVES) + r")\b[^\n]*")


@dataclass(frozen=True)
class Piece:
    """One piece of text: kind is "open", "close", "label", "line" (a directive of one line) or "statement"."""

    kind: str
    text: str
    line: int


def without_comments(text: str) -> str:
    """Blanks out comments and keeps the line breaks, so that lines keep their numbers."""
    return _COMMENT.sub(lambda match: match[0] if match[0][0] == '"' else "\n" * match[0].count("\n"), text)


class Scanner:
    """Walks over comment-free text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._breaks = [match.start() for match in re.finditer("\n", text)]

    def line(self, position: int) -> int:
        """1-based line of a position."""
        return bisect_right(self._breaks, position - 1) + 1

    def closing(self, opening: int) -> int:
        """Position of the brace that closes the one at `opening`."""
        depth = 0
        for match in re.compile(r"[{}]").finditer(self.text, opening):
            depth += 1 if match[0] == "{" else -1
            if depth == 0:
                return match.start()
        raise ParseError(f"PTX line {self.line(opening)}: brace is never closed")

    def module(self) -> Iterator[tuple[str, int, tuple[int, int] | None]]:
        """(header, line, span of the body or None) of every directive, variable and function."""
        position, end = 0, len(self.text)
        while True:
            blank = _SPACE.match(self.text, position)
            position = blank.end() if blank else position
            if position >= end:
                return
            line = self.line(position)
            directive = _LINE_DIRECTIVE.match(self.text, position)
            if directive and directive[1] == "section":
                position = self.closing(self.text.index("{", position)) + 1
                continue
            if directive:
                yield directive[0].strip(), line, None
                position = directive.end()
                continue
            stop = re.compile(r"[;{=]").search(self.text, position)
            if stop is None:
                raise ParseError(f"PTX line {line}: no end of {self.text[position : position + 40]!r}")
            if stop[0] == "{":
                close = self.closing(stop.start())
                yield self.text[position : stop.start()].strip(), line, (stop.start() + 1, close)
                position = close + 1
            else:
                close = self.text.index(";", stop.start())
                yield self.text[position:close].strip(), line, None
                position = close + 1

    def body(self, start: int, end: int) -> Iterator[Piece]:
        """The pieces of a function's body."""
        text, position = self.text, start
        while True:
            blank = _SPACE.match(text, position, end)
            position = blank.end() if blank else position
            if position >= end:
                return
            line = self.line(position)
            if text[position] in "{}":
                yield Piece("open" if text[position] == "{" else "close", text[position], line)
                position += 1
                continue
            if label := _LABEL.match(text, position, end):
                yield Piece("label", label[1], line)
                position = label.end()
                continue
            if directive := _LINE_DIRECTIVE.match(text, position, end):
                yield Piece("line", directive[0].strip(), line)
                position = directive.end()
                continue
            stop = text.find(";", position, end)
            if stop < 0:
                raise ParseError(f"PTX line {line}: no semicolon after {text[position : position + 60]!r}")
            yield Piece("statement", _SPACE.sub(" ", text[position:stop]).strip(), line)
            position = stop + 1


def split_operands(text: str) -> list[str]:
    """Cuts at the commas that are in no bracket."""
    found, depth, start = [], 0, 0
    for position, character in enumerate(text):
        if character in "{[(":
            depth += 1
        elif character in "}])":
            depth -= 1
        elif character == "," and depth == 0:
            found.append(text[start:position].strip())
            start = position + 1
    found.append(text[start:].strip())
    return [part for part in found if part]
