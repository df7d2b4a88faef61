"""YAML in and out: numbers as YAML 1.2 has them, a duplicate key is an error, files appear whole or not at
all.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from longspan.recipe.errors import RecipeError


class _Loader(yaml.SafeLoader):
    """SafeLoader that takes 2e-4 for a number (YAML 1.1 takes it for text) and refuses duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is not text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def parse_value(text: str, where: str) -> Any:
    """Any YAML value. Raises `RecipeError` with line and column for what is not YAML."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise RecipeError(where, [f"{place}{error.problem or error.context}"]) from None
    except yaml.YAMLError as error:
        raise RecipeError(where, [f"not YAML: {error}"]) from None


def parse(text: str, where: str) -> dict[str, Any]:
    """The mapping that ``text`` holds. Raises `RecipeError` otherwise."""
    loaded = parse_value(text, where)
    if loaded is None:
        raise RecipeError(where, ["the file is empty; it needs at least 'model: demo'"])
    if not isinstance(loaded, dict):
        raise RecipeError(where, [f"must hold a mapping of keys, not a {type(loaded).__name__}"])
    return loaded


def read(path: str | Path) -> dict[str, Any]:
    """Read a YAML file. Raises ``FileNotFoundError``, or `RecipeError` for what is not YAML."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no recipe {path}")
    try:
        return parse(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise RecipeError(str(path), [f"not UTF-8 text: {error.reason} at byte {error.start}"]) from None


def dump(data: dict[str, Any]) -> str:
    """YAML text in the order of ``data``."""
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)
