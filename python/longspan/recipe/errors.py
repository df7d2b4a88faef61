"""Errors of a recipe, one line per problem, each with its full dotted key."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError


class RecipeError(ValueError):
    """A recipe that cannot be used. ``problems`` holds one sentence per problem."""

    def __init__(self, where: str, problems: list[str]) -> None:
        self.where, self.problems = where, problems
        text = problems[0] if len(problems) == 1 else "\n  ".join([f"{len(problems)} problems", *problems])
        super().__init__(f"{where}: {text}")

    def __reduce__(self) -> tuple[type[RecipeError], tuple[str, list[str]]]:
        return type(self), (self.where, self.problems)


def _sentence(error: Any) -> str:
    path = ".".join(str(part) for part in error["loc"])
    context = error.get("ctx", {})
    if error["type"] == "unknown_key":
        parent = "".join(f"{part}." for part in error["loc"][:-1])
        close = context["nearest"]
        if close:
            return f"unknown key {path}; did you mean {parent}{close}?"
        return f"unknown key {path}; keys allowed here: {', '.join(parent + key for key in context['allowed'])}"
    if error["type"] == "missing":
        return f"{path} is required"
    if error["type"] == "value_error":
        text = str(context["error"])
    elif error["type"] == "not_a_mapping":
        text = error["msg"]
    else:
        text = f"{error['msg'][0].lower()}{error['msg'][1:]}, not {error['input']!r}"
    return f"{path}: {text}" if path else text


def explain(where: str, error: ValidationError) -> RecipeError:
    """Turn pydantic's report into a `RecipeError`."""
    return RecipeError(where, [_sentence(item) for item in error.errors(include_url=False)])
