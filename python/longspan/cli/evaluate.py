"""`longspan eval`."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from longspan.cli import tables


class Task(str, enum.Enum):
    """What is measured."""

    perplexity = "perplexity"
    passkey = "passkey"


def parse_lengths(text: str) -> list[int]:
    """'1024,2048' as [1024, 2048]; a k counts 1024."""
    lengths = []
    for part in text.split(","):
        digits = part.strip().lower()
        factor = 1024 if digits.endswith("k") else 1
        digits = digits.removesuffix("k")
        if not digits.isdecimal() or int(digits) < 1:
            raise ValueError(f"--lengths takes numbers of tokens such as 1024,2048 or 1k,2k, not {text!r}")
        lengths.append(int(digits) * factor)
    return sorted(set(lengths))


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error; yields the function that moves it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def select_documents(tokenizer: Any, source: str, form: str, count: int, tokens: int) -> list[list[int]]:
    """The first ``count`` documents of at least ``tokens`` tokens, cut to that many; of the demo, held-out ones."""
    from longspan.data import build
    from longspan.data.config import DataConfig

    config = DataConfig(train=source, format=form, length=max(16, tokens), held_out=0.05 if source == "demo" else 0)
    built = build(config, tokenizer)
    rows = built.train if built.held_out is None else built.held_out
    found = rows.documents(at_least=tokens)
    if not found:
        longest = max(len(document) for document in rows.documents())
        raise ValueError(
            f"no document of {source!r} has {tokens} tokens, the longest has {longest}; use smaller --lengths"
        )
    return [document[:tokens] for document in found[:count]]


def evaluate(
    task: Annotated[Task, typer.Option(help="What to measure.")],
    model: Annotated[str, typer.Option(help="demo, a folder in transformers' format (see merge), or a hub id.")],
    data: Annotated[str, typer.Option(help="Source of documents for perplexity, as data.train of a recipe.")] = "demo",
    form: Annotated[str, typer.Option("--format", help="Format of its records, as data.format of a recipe.")] = "text",
    lengths: Annotated[str, typer.Option(help="Context lengths in tokens.")] = "1024,2048,4096",
    documents: Annotated[int, typer.Option(min=1, help="At most this many documents.")] = 8,
    stride: Annotated[int | None, typer.Option(min=1, help="Window stride; default half the length.")] = None,
    trials: Annotated[int, typer.Option(min=1, help="Passkey questions per length.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the passkey questions.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    out: Annotated[Path | None, typer.Option("--json", help="Also write the results to this file.")] = None,
) -> None:
    """Score a model with full attention: perplexity by context length, or passkey retrieval."""
    from longspan import folders
    from longspan.train.model import load_model

    sizes = parse_lengths(lengths)
    loaded, tokenizer = load_model(model, dtype)
    console = Console()
    with progress_bar(task.value) as progress:
        results: dict[int, Any]
        about: dict[str, Any]
        if task is Task.perplexity:
            from longspan.eval import perplexity

            texts = select_documents(tokenizer, data, form, documents, max(sizes))
            results = dict(perplexity(loaded, texts, sizes, stride, progress=progress))
            about = {"data": data, "format": form, "documents": len(texts), "stride": stride}
            title = f"{model}: perplexity on {len(texts)} documents of {data}"
            table = tables.perplexity(title, results)
        else:
            from longspan.eval import passkey

            results = dict(passkey(loaded, tokenizer, sizes, trials, seed, progress=progress))
            about = {"trials": trials, "seed": seed}
            table = tables.passkey(f"{model}: passkey retrieval, {trials} trials per length", results)
    console.print(table)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        folders.write_file(
            out, json.dumps({"task": task.value, "model": model, **about, "results": results}, indent=1) + "\n"
        )
