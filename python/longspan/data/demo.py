"""The demo corpus: the standard library's source and the language reference that every Python carries."""

from __future__ import annotations

import functools
import hashlib
import sysconfig
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path

from longspan.data.sources import Place, Source

# Tests are not prose or programs to learn from, encodings are tables, pydoc_data is read as the reference
# itself, and the rest does not belong to the standard library or differs from machine to machine.
_LEFT_OUT = frozenset(
    {"test", "tests", "idle_test", "encodings", "pydoc_data", "site-packages", "dist-packages", "ensurepip"}
    | {"lib-dynload", "__pycache__", "__phello__"}
)


@functools.cache
def documents() -> tuple[Place, ...]:
    """(name, {text}) of every document: modules by path, then the language reference by topic. About 12 MB."""
    return (*_modules(), *_reference())


def _modules() -> Iterator[Place]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        parts = path.relative_to(root).parts
        if _LEFT_OUT.intersection(parts) or parts[0].startswith(("config-", "_sysconfigdata")):
            continue
        try:
            with tokenize.open(path) as file:
                text = file.read()
        except (SyntaxError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not readable as Python source: {error}") from None
        if text.strip():
            yield f"Lib/{'/'.join(parts)}", {"text": text}


def _reference() -> Iterator[Place]:
    from pydoc_data.topics import topics

    yield from ((f"reference/{topic}", {"text": text}) for topic, text in sorted(topics.items()) if text.strip())


def reference_text() -> str:
    """The language reference as one text, plain English prose."""
    return "\n\n".join(record["text"] for _, record in _reference())


class Demo(Source):
    """Source 'demo'."""

    name = "demo"

    def key(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for place, record in documents():
            digest.update(f"{place}\0{record['text']}\0".encode())
        return digest.hexdigest()

    def records(self, columns: Sequence[str]) -> Iterator[Place]:
        yield from documents()
