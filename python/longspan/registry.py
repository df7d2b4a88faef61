"""The one mechanism behind every axis: a method is a config class registered by axis and name.

A method lives in its axis' folder, subclasses `Method`, and registers itself:

    @register("attention", "window")
    class WindowAttention(AttentionMethod):
        method: Literal["window"] = "window"
        size: int

Names that a later version will serve are reserved with `reserve`; asking for one says so, which is
different from asking for a name that nobody knows.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Strict,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

AXES: tuple[str, ...] = (
    "attention",
    "tokens",
    "ffn",
    "positions",
    "adapters",
    "update_engine",
    "update_transform",
    "update_hook",
    "objective",
)
"""The questions that a recipe answers; a method is registered on one of them."""

# Strict scalars: YAML's `yes`, "8" and 8.0 are not silently taken for the integer 1 or 8.
Int = Annotated[int, Strict()]
"""An integer."""
Float = Annotated[float, Strict()]
"""A number, also one written as an integer."""
Bool = Annotated[bool, Strict()]
"""`true` or `false`."""

T = TypeVar("T", bound="Method")


def nearest(given: str, allowed: Iterable[str]) -> str | None:
    """The allowed name that looks most like ``given``, or None when nothing is close."""
    found = difflib.get_close_matches(given.lower(), list(allowed), n=1, cutoff=0.5)
    return found[0] if found else None


def choose(kind: str, given: Any, available: Iterable[str], reserved: Iterable[str] = ()) -> str:
    """Return ``given`` if it is available, else raise ``ValueError`` with the reason and the choices.

    ``kind`` is the noun of the message ("attention method"); ``reserved`` are names of later versions.
    """
    available, reserved = list(available), list(reserved)
    choices = f"available: {', '.join(available) or 'none'}"
    if not isinstance(given, str):
        raise ValueError(f"{kind} must be a name, not {given!r}; {choices}")
    if given in available:
        return given
    if given in reserved:
        raise ValueError(f"{kind} {given!r} is not available yet; {choices}")
    close = nearest(given, [*available, *reserved])
    hint = f"; did you mean {close!r}?" if close else ";"
    raise ValueError(f"unknown {kind} {given!r}{hint} {choices}")


@dataclass(frozen=True)
class Choice:
    """Marks a text field as one of the ``allowed`` names: `choose` checks it, and the JSON schema lists them."""

    kind: str
    allowed: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(
            lambda given: choose(self.kind, given, self.allowed), handler(source)
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "enum": list(self.allowed)}


class Config(BaseModel):
    """Base of every part of a recipe: immutable, and unknown keys are errors that name the nearest key."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, given: Any) -> Any:
        if isinstance(given, BaseModel):
            return given
        if not isinstance(given, dict):
            raise PydanticCustomError(
                "not_a_mapping",
                "must be a mapping with the keys {keys}, not {given}",
                {"keys": ", ".join(cls.model_fields), "given": repr(given)},
            )
        unknown = [key for key in given if key not in cls.model_fields]
        if not unknown:
            return given
        raise ValidationError.from_exception_data(
            cls.__name__,
            [
                InitErrorDetails(
                    type=PydanticCustomError(
                        "unknown_key",
                        "unknown key",
                        {"nearest": nearest(str(key), cls.model_fields), "allowed": list(cls.model_fields)},
                    ),
                    loc=(str(key),),
                    input=given[key],
                )
                for key in unknown
            ],
        )


class Method(Config):
    """Base of every method's config. Subclasses narrow ``method`` to a ``Literal`` of their name."""

    method: str
    axis: ClassVar[str] = ""


_METHODS: dict[str, dict[str, type[Method]]] = {axis: {} for axis in AXES}
_RESERVED: dict[str, set[str]] = {axis: set() for axis in AXES}


def _check_axis(axis: str) -> None:
    if axis not in AXES:
        raise ValueError(f"unknown axis {axis!r}; axes: {', '.join(AXES)}")


def noun(axis: str) -> str:
    """How messages call a method of this axis, e.g. 'update engine method'."""
    return f"{axis.replace('_', ' ')} method"


def register(axis: str, name: str) -> Callable[[type[T]], type[T]]:
    """Class decorator: make ``name`` of ``axis`` mean this config class.

    Raises ``ValueError`` for an unknown axis and for a name that is taken already.
    """
    _check_axis(axis)

    def add(cls: type[T]) -> type[T]:
        known = _METHODS[axis].get(name)
        if known is not None:
            raise ValueError(f"{noun(axis)} {name!r} is registered already by {known.__module__}.{known.__qualname__}")
        default = cls.model_fields["method"].default
        if default != name:
            raise ValueError(f"{cls.__qualname__}.method defaults to {default!r} but is registered as {name!r}")
        cls.axis = axis
        _METHODS[axis][name] = cls
        _RESERVED[axis].discard(name)
        return cls

    return add


def reserve(axis: str, *names: str) -> None:
    """Note names that later versions will register, so that asking for one says 'not available yet'."""
    _check_axis(axis)
    _RESERVED[axis].update(name for name in names if name not in _METHODS[axis])


def available(axis: str) -> tuple[str, ...]:
    """Names registered on ``axis``, sorted."""
    _check_axis(axis)
    return tuple(sorted(_METHODS[axis]))


def reserved(axis: str) -> tuple[str, ...]:
    """Names known on ``axis`` that this version does not have, sorted."""
    _check_axis(axis)
    return tuple(sorted(_RESERVED[axis]))


def lookup(axis: str, name: str) -> type[Method]:
    """The config class of a method. Raises ``ValueError`` for unknown and for unavailable names."""
    _check_axis(axis)
    return _METHODS[axis][choose(noun(axis), name, available(axis), reserved(axis))]


def _resolve(axis: str, phase: str | None, given: Any) -> Method:
    """Turn ``{method: name, ...}`` into the config of that method; errors keep the path of the inner key."""
    if isinstance(given, Method):
        config = given
        if config.axis != axis:
            raise ValueError(f"{type(given).__name__} is no {noun(axis)}")
    else:
        if not isinstance(given, dict) or "method" not in given:
            raise ValueError(
                f"must be a mapping with the key 'method', not {given!r}; available: {', '.join(available(axis))}"
            )
        config = lookup(axis, given["method"]).model_validate(given)
    phases = getattr(config, "phases", None)
    if phase is not None and phases is not None and phase not in phases:
        fitting = [name for name in available(axis) if phase in getattr(_METHODS[axis][name], "phases", (phase,))]
        raise ValueError(
            f"{noun(axis)} {config.method!r} serves {', '.join(phases)} only, not {phase}; "
            f"available for {phase}: {', '.join(fitting)}"
        )
    return config


def one_of(axis: str, phase: str | None = None) -> BeforeValidator:
    """Marks a recipe's field as holding any registered method of ``axis`` (that serves ``phase``)."""
    return BeforeValidator(lambda given: _resolve(axis, phase, given))
