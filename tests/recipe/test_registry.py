"""The registry: one name, one method; unknown, unavailable and taken names are three different errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pytest

from longspan import recipe, registry
from longspan.registry import Method

assert recipe.Recipe  # importing the recipe registers every axis


@pytest.fixture
def clean() -> Iterator[None]:
    """Undo what a test registers."""
    methods = {axis: dict(names) for axis, names in registry._METHODS.items()}
    names = {axis: set(known) for axis, known in registry._RESERVED.items()}
    yield
    for axis in registry.AXES:
        registry._METHODS[axis] = methods[axis]
        registry._RESERVED[axis] = names[axis]


def method(name: str) -> type[Method]:
    return type("Made", (Method,), {"__annotations__": {"method": Literal[name]}, "method": name})


@pytest.mark.usefixtures("clean")
def test_a_registered_method_is_found_and_no_longer_reserved() -> None:
    assert "yarn" in registry.reserved("positions")
    made = registry.register("positions", "yarn")(method("yarn"))
    assert registry.lookup("positions", "yarn") is made
    assert made.axis == "positions"
    assert "yarn" not in registry.reserved("positions")
    assert "yarn" in registry.available("positions")
    registry.reserve("positions", "yarn")
    assert "yarn" not in registry.reserved("positions")


@pytest.mark.usefixtures("clean")
def test_a_taken_name_is_refused_and_keeps_its_first_meaning() -> None:
    first = registry.lookup("attention", "full")
    with pytest.raises(ValueError, match=r"'full' is registered already by longspan\.attention\.full\.FullAttention"):
        registry.register("attention", "full")(method("full"))
    assert registry.lookup("attention", "full") is first


@pytest.mark.usefixtures("clean")
def test_a_class_must_carry_the_name_it_is_registered_under() -> None:
    with pytest.raises(ValueError, match=r"Made\.method defaults to 'one' but is registered as 'two'"):
        registry.register("tokens", "two")(method("one"))


@pytest.mark.parametrize(
    ("axis", "name", "message"),
    [
        (
            "attention",
            "windw",
            "unknown attention method 'windw'; did you mean 'window'? available: full, pq, s2, window",
        ),
        ("attention", "zzzzzz", "unknown attention method 'zzzzzz'; available: full, pq, s2, window"),
        ("tokens", "lemma", "unknown tokens method 'lemma'; did you mean 'lemo'? available: lemo, none"),
        ("ffn", "rooted", "unknown ffn method 'rooted'; did you mean 'routed'? available: dense, routed"),
        ("positions", "yarn", "positions method 'yarn' is not available yet; available: linear, none"),
        ("positions", "yarm", "unknown positions method 'yarm'; did you mean 'yarn'? available: linear, none"),
        ("adapters", "prefix", "adapters method 'prefix' is not available yet; available: lora, none"),
        ("update_engine", 3, "update engine method must be a name, not 3; available: adamw, es, mezo, sgd"),
        (
            "update_transform",
            "gtm",
            "unknown update transform method 'gtm'; did you mean 'gmt'? available: component_clip, gmt, hft, neft",
        ),
        ("objective", "dft", "objective method 'dft' is not available yet; available: sft"),
        ("colour", "red", f"unknown axis 'colour'; axes: {', '.join(registry.AXES)}"),
    ],
)
def test_names_that_cannot_be_used(axis: str, name: object, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        registry.lookup(axis, name)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("axis", "names"),
    [
        ("positions", ["ntk", "yarn", "longrope", "self_extend"]),
        ("adapters", ["bottleneck", "prefix"]),
    ],
)
def test_methods_of_later_versions_are_known_by_name(axis: str, names: list[str]) -> None:
    assert set(names) <= set(registry.reserved(axis))
    assert not set(names) & set(registry.available(axis))


@pytest.mark.parametrize("axis", registry.AXES)
def test_every_method_validates_from_its_own_dump(axis: str) -> None:
    needed = {"linear": {"factor": 2.0}, "window": {"size": 8}}
    needed |= {"component_clip": {"max_norm": 1.0}, "neft": {"neurons": "file"}}
    for name in registry.available(axis):
        config = registry.lookup(axis, name).model_validate({"method": name, **needed.get(name, {})})
        assert registry.lookup(axis, name).model_validate(config.model_dump(mode="json")) == config
