"""Any recipe at all is taken, and then loses nothing as YAML, or is refused by an error that names a key."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longspan.recipe import Recipe, RecipeError
from longspan.recipe.sections import RECOMPUTE
from longspan.registry import AXES, available

GOOD = [
    yaml.safe_load(path.read_text(encoding="utf-8"))
    for path in sorted(Path(__file__).parents[2].glob("recipes/*.yaml"))
]
NAMES = sorted({name for axis in AXES for name in available(axis)} | set(RECOMPUTE) | {"auto", "documents", "demo", ""})
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([2**31, 2**63, 2**64, -(2**63), 10**400]),
    st.floats(),
    st.sampled_from(NAMES),
    st.text(max_size=8),
    st.binary(max_size=3),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(st.sampled_from(["method", "train", "layers", "steps"]), st.integers()), inner, max_size=3
        ),
    ),
    max_leaves=6,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a nested recipe."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    found = [(value, key) for key in keys]
    return found + [place for _, key in found for place in places(value[key])]


@st.composite
def broken(draw: st.DrawFn) -> Any:
    """A recipe that comes with longspan, after one to three changes anywhere."""
    recipe = copy.deepcopy(draw(st.sampled_from(GOOD)))
    for _ in range(draw(st.integers(1, 3))):
        where = places(recipe)
        if not where:
            return recipe
        container, key = where[draw(st.integers(0, len(where) - 1))]
        kind = draw(st.sampled_from(["replace", "remove", "add", "rename"]))
        if kind == "replace":
            container[key] = draw(VALUES)
        elif kind == "remove":
            del container[key]
        elif isinstance(container, dict):
            name = draw(
                st.one_of(st.sampled_from(sorted(map(str, container))), st.sampled_from(NAMES), st.text(max_size=6))
            )
            container[name] = container.pop(key) if kind == "rename" else draw(VALUES)
        else:
            container.append(draw(VALUES))
    return recipe


def check(given_recipe: Any) -> None:
    try:
        recipe = Recipe.model_validate(given_recipe)
    except RecipeError as error:
        text = str(error)
        assert text.strip()
        assert " object at 0x" not in text
        assert len(text) < 4000, "an error that nobody reads"
        return
    assert Recipe.model_validate(yaml.safe_load(recipe.to_yaml())) == recipe


@settings(max_examples=300)
@given(broken())
def test_changed_recipes(given_recipe: Any) -> None:
    check(given_recipe)


@pytest.mark.sweep
@settings(max_examples=12_000, suppress_health_check=list(HealthCheck))
@given(broken())
def test_many_changed_recipes(given_recipe: Any) -> None:
    check(given_recipe)


@settings(max_examples=200)
@given(st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass"))))
def test_files_of_anything(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_bytes(content)
        problem = "recipe.yaml"
        try:
            Recipe.from_yaml(path)
        except ValueError as error:
            problem = str(error)
        assert "recipe.yaml" in problem
