"""The reference is complete and true: every public name once, with its docstring; every key; every command."""

from __future__ import annotations

import html
import importlib
import inspect
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

import longspan
from longspan import kernels, recipe, registry, updates
from longspan.cli.main import app

HEADING = re.compile(r'<h[1-6] id="([^"]+)"')
CONFIGS = [
    recipe.Recipe,
    *(type(section) for section in vars(recipe.Recipe()).values() if type(section) in registry.Config.__subclasses__()),
    updates.ParameterGroup,
    *(registry.lookup(axis, name) for axis in registry.AXES for name in registry.available(axis)),
]


@pytest.fixture(scope="module")
def entries(site: Path) -> dict[str, str]:
    """What stands under each heading of the reference, up to the next one, by its address: page.html#anchor."""
    found: dict[str, str] = {}
    for page in sorted((site / "reference").glob("*.html")):
        _, *parts = re.split(HEADING, page.read_text(encoding="utf-8"))
        for anchor, part in zip(parts[::2], parts[1::2], strict=True):
            found[f"reference/{page.name}#{anchor}"] = part
    return found


@pytest.fixture(scope="module")
def inventory(site: Path) -> dict[str, str]:
    """What other sites may link to: the page and the anchor of each name."""
    from mkdocstrings import Inventory

    with (site / "objects.inv").open("rb") as file:
        return {name: item.uri.replace("$", name) for name, item in Inventory.parse_sphinx(file).items()}


def missing(names: Iterable[str], inventory: dict[str, str], entries: dict[str, str]) -> list[str]:
    """Names without an entry."""
    return [name for name in names if inventory.get(name) not in entries]


def path_of(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def text_of(part: str) -> str:
    """What a reader sees of a piece of a page, without the space between words."""
    return re.sub(r"\s", "", html.unescape(re.sub(r"<[^>]*>", "", part)))


def resolve(name: str) -> Any:
    """What a dotted name means in Python."""
    parent, _, last = name.rpartition(".")
    try:
        return getattr(importlib.import_module(parent), last)
    except ModuleNotFoundError:
        return getattr(resolve(parent), last)


def public_names() -> Iterator[str]:
    """What the package and its folders export, kernels, and the functions and classes of the registry."""
    folders = sorted(file.parent.name for file in Path(longspan.__file__).parent.glob("*/__init__.py"))
    for module in ["longspan", *(f"longspan.{folder}" for folder in folders)]:
        yield from (f"{module}.{name}" for name in getattr(importlib.import_module(module), "__all__", ()))
    yield from (f"longspan.kernels.{name}" for name in dir(kernels))
    for name, value in vars(registry).items():
        if getattr(value, "__module__", "") == registry.__name__ and callable(value) and not name.startswith("_"):
            yield f"longspan.registry.{name}"


NAMES = list(public_names())


def test_every_public_name_has_an_entry(inventory: dict[str, str], entries: dict[str, str]) -> None:
    assert not missing(NAMES, inventory, entries)


def test_a_name_without_an_entry_is_found(inventory: dict[str, str], entries: dict[str, str]) -> None:
    less = {name: address for name, address in inventory.items() if name != "longspan.ops.rope"}
    assert missing(NAMES, less, entries) == ["longspan.ops.rope"]


def test_nothing_has_two_entries(entries: dict[str, str]) -> None:
    anchors = [address.partition("#")[2] for address in entries]
    things = [resolve(anchor) for anchor in anchors if anchor.startswith("longspan.")]
    counts = Counter(path_of(thing) for thing in things if inspect.isclass(thing) or inspect.isfunction(thing))
    assert not [path for path, count in counts.items() if count > 1]


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("longspan.ops.", "longspan.kernels."))])
def test_docstrings_are_shown_whole(name: str, inventory: dict[str, str], entries: dict[str, str]) -> None:
    """No part of one is taken for a tag, emphasis or a link."""
    thing = resolve(name)
    if not callable(thing):
        return
    text = inspect.getdoc(thing)
    assert text
    if inspect.isbuiltin(thing):
        text = text.partition("\n")[2]  # behind the signature
    shown = text_of(entries[inventory[name]])
    assert re.sub(r"[\s`]", "", text) in shown.replace("`", "")


@pytest.mark.parametrize("config", CONFIGS, ids=path_of)
def test_every_key_has_its_row(config: Any, inventory: dict[str, str], entries: dict[str, str]) -> None:
    """With every name that it allows, and its default."""
    part = entries[inventory[path_of(config)]]
    rows = dict(re.findall(r"<tr>\s*<td><code>(\w+)</code></td>(.*?)</tr>", part, re.DOTALL))
    assert list(rows) == list(config.model_fields)
    for name, schema in config.model_json_schema()["properties"].items():
        allowed = [f"<code>{value}</code>" for value in schema.get("enum", [])]
        assert [value for value in allowed if value not in rows[name]] == []
        default = schema.get("default")
        if isinstance(default, str) and name != "method":
            assert rows[name].rstrip().endswith(f"<td><code>{default}</code></td>")


def commands(command: Any, path: str) -> Iterator[tuple[str, list[str]]]:
    """Every command, and its options and arguments."""
    yield path, [option for each in command.params for option in (*each.opts, *each.secondary_opts)]
    for name, each in getattr(command, "commands", {}).items():
        yield from commands(each, f"{path} {name}")


CLI = "reference/cli.html#"
COMMANDS = dict(commands(typer.main.get_command(app), "longspan"))


def test_every_command_has_its_section_and_no_other_has_one(entries: dict[str, str]) -> None:
    shown = [address for address in entries if address.startswith(f"{CLI}longspan")]
    assert sorted(shown) == sorted(CLI + path.replace(" ", "-") for path in COMMANDS)


@pytest.mark.parametrize("path", COMMANDS)
def test_every_option_has_its_row(path: str, entries: dict[str, str]) -> None:
    part = entries[CLI + path.replace(" ", "-")]
    cells = " ".join(re.findall(r"<tr>\s*<td><code>(.*?)</code></td>", part))
    assert [option for option in COMMANDS[path] if option not in re.split(r"[\s/]+", cells)] == []


def kernel_pages(root: Path) -> list[str]:
    nav = yaml.safe_load((root / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    kernels = next(entry["Kernels"] for entry in nav if isinstance(entry, dict) and "Kernels" in entry)
    return [page.replace(".md", ".html") for page in kernels if page != "shapes.md"]


def test_pages_of_kernels_and_the_reference_link_to_each_other(root: Path, site: Path) -> None:
    reference = "".join(
        (site / "reference" / f"{name}.html").read_text(encoding="utf-8") for name in ("ops", "kernels")
    )
    for page in kernel_pages(root):
        text = (site / page).read_text(encoding="utf-8")
        assert re.search(r'href="reference/(ops|kernels)\.html#longspan\.', text), page
        assert f'href="../{page}"' in reference, page
