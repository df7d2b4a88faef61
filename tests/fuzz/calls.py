"""A drawn call, the same with one argument spoiled, and what both must obey."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longspan._native import MissingBackendError
from tests.fuzz.draw import F32, F64, Draw
from tests.fuzz.spoil import OTHER_TYPES, spoiled
from tests.laws import FORWARD

TERMS = 4096  # no drawn sum is longer: any problem at all is no sample of torch's error (tests/laws.py)


@dataclass
class Call:
    """`run(**given)`, a valid call with all arguments by name.

    exact: of the same arguments what `run` gives, in any float dtype; None: results are no nan, nothing more is known.
    learned: the arguments that get a gradient. sized: those that ask for memory. free: those that any value may have.
    """

    run: Callable[..., Any]
    given: dict[str, Any]
    exact: Callable[..., Any] | None = None
    learned: tuple[str, ...] = ()
    sized: tuple[str, ...] = ()
    names: tuple[str, ...] = ()  # of errors, beside the entry's and the argument's
    free: tuple[str, ...] = ()
    bitwise: bool = False  # results are integers of rounded numbers, which another dtype would round otherwise


DRAWINGS: dict[str, Callable[[Draw], Call]] = {}


def drawing(*names: str) -> Callable[[Callable[[Draw], Call]], Callable[[Draw], Call]]:
    """Registers a drawing of the public entries `names`."""

    def add(draw: Callable[[Draw], Call]) -> Callable[[Draw], Call]:
        for name in names:
            assert name not in DRAWINGS, name
            DRAWINGS[name] = draw
        return draw

    return add


def fuzz(name: str, data: Any) -> None:
    """One valid call of the entry and, drawn from the same arguments, one spoiled call."""
    draw = Draw(data)
    call = DRAWINGS[name](draw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if draw.flag():
            obeys_spoiled(name, draw, call)
        else:
            obeys_valid(name, call)


def obeys_valid(name: str, call: Call) -> None:
    expected = _expected(call, call.given)
    compare(name, call.run(**fresh(call.given)), expected)
    if call.learned and call.exact and all(call.given[n].dtype == F64 for n in call.learned if n in call.given):
        ours, exact = (_gradients(call, f) for f in (call.run, call.exact))
        for argument, found, wanted in zip(call.learned, ours, exact, strict=True):
            assert torch.isfinite(found).all(), f"{name}: the gradient of {argument} is not finite"
            largest = max(1.0, wanted.abs().max().item()) if wanted.numel() else 1.0
            assert torch.allclose(found, wanted, 1e-8, 1e-9 * largest), f"{name}: the gradient of {argument} is wrong"


def obeys_spoiled(name: str, draw: Draw, call: Call) -> None:
    argument = draw.one(*(n for n in call.given if n not in call.free))
    kind, value = spoiled(draw, call.given[argument], argument in call.sized)
    given = {**call.given, argument: value}
    try:
        expected: Any = _expected(call, given)
    except Exception as error:  # the reference cannot compute it, so neither may we
        expected = error
    try:
        found = call.run(**fresh(given))
    except (ValueError, TypeError, MissingBackendError, AttributeError, RuntimeError, OverflowError) as error:
        _is_ours(name, argument, kind, error, (*call.given, *call.names))
        return
    if any(isinstance(x, Tensor) and x.is_meta for x in leaves(found)):
        return
    assert not isinstance(expected, Exception), (
        f"{name} takes {argument} ({kind}: {shown(value)}), of which the reference says: {expected!r}"
    )
    compare(f"{name} with {argument} ({kind}: {shown(value)})", found, expected)


def _is_ours(name: str, argument: str, kind: str, error: Exception, names: tuple[str, ...]) -> None:
    """The error says whose it is, or which argument it is about: the spoiled one, or one that it does not fit."""
    if kind in OTHER_TYPES:
        return
    text, entry = str(error), name.rpartition(".")[2]
    known = (entry.rstrip("_"), argument, *argument.split("_", 1), *names)
    named = not isinstance(error, AttributeError) and any(re.search(rf"\b{word}", text) for word in known)
    assert named, f"{name}: {argument} ({kind}) gives an error that names nothing: {error!r}"


def _expected(call: Call, given: dict[str, Any]) -> Any:
    """(exact, torch's own in the dtype of the call), or None."""
    if call.exact is None:
        return None
    if call.bitwise:
        found = call.exact(**given)
        return found, found
    wide = {n: cast(x, F64) for n, x in given.items()}
    narrow = any(isinstance(x, Tensor | np.ndarray) and "float64" in str(x.dtype) for x in leaves(given))
    return call.exact(**wide), call.exact(**{n: cast(x, F32) for n, x in given.items()} if narrow else given)


def _gradients(call: Call, function: Callable[..., Any]) -> list[Tensor]:
    given = fresh(call.given)
    wanted = [given[n].detach().clone().requires_grad_() for n in call.learned]
    out = function(**{**given, **dict(zip(call.learned, wanted, strict=True))})
    floats = [x for x in leaves(out) if isinstance(x, Tensor) and x.dtype.is_floating_point and x.requires_grad]
    total = sum((x * torch.linspace(-1, 1, x.numel(), dtype=x.dtype).reshape(x.shape)).sum() for x in floats)
    if not isinstance(total, Tensor):
        return [torch.zeros_like(x) for x in wanted]
    return list(torch.autograd.grad(total, wanted, materialize_grads=True, allow_unused=True))


def compare(name: str, found: Any, expected: Any) -> None:
    ours = leaves(found)
    if expected is None:
        for x in ours:
            if isinstance(x, Tensor) and x.dtype.is_floating_point and not x.is_meta:
                assert not x.isnan().any(), f"{name}: nan"
        return
    exact, torchs = (leaves(x) for x in expected)
    assert len(ours) == len(exact), f"{name}: {len(ours)} results, expected {len(exact)}"
    for i, (x, y, z) in enumerate(zip(ours, exact, torchs, strict=True)):
        x, y, z = (torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else v for v in (x, y, z))
        if not isinstance(x, Tensor):
            assert x == y or (x != x and y != y), f"{name}: result {i} is {x}, expected {y}"
        elif not x.dtype.is_floating_point:
            assert torch.equal(x.long(), y.long()), f"{name}: result {i} differs: {x}, expected {y}"
        elif y.isnan().any():
            assert x.isnan().any(), f"{name}: result {i} hides a nan"
        else:
            _close(f"{name}: result {i}", x.detach(), y.detach(), z.detach())


def _close(name: str, ours: Tensor, exact: Tensor, torchs: Tensor) -> None:
    """The bound of tests/laws.py on the largest error: results may be one number, of which no mean says anything."""
    assert ours.shape == exact.shape, f"{name}: shape {tuple(ours.shape)}, expected {tuple(exact.shape)}"
    ours, exact, torchs, kind = ours.double(), exact.double(), torchs.double(), torch.finfo(ours.dtype)
    if not ours.numel() or not (torchs.isfinite() & (exact.abs() < kind.max)).all():
        return
    assert ours.isfinite().all(), f"{name}: not finite"
    scale = kind.eps / torch.finfo(F32).eps if kind.eps < 1e-12 else 1.0
    allowed = (FORWARD + 1) * scale * (torchs - exact).abs().max() + 2 * kind.eps * TERMS**0.5 * max(
        1.0, exact.abs().max()
    )
    error = (ours - exact).abs().max()
    assert error <= allowed, f"{name}: error {error:.3e}, allowed {allowed:.3e}"


def leaves(value: Any) -> list[Any]:
    """Tensors and numbers of nested results, in order; None stays."""
    if isinstance(value, list | tuple):
        return [leaf for each in value for leaf in leaves(each)]
    if isinstance(value, dict):
        return [leaf for each in value.values() for leaf in leaves(each)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [leaf for f in dataclasses.fields(value) for leaf in leaves(getattr(value, f.name))]
    return [value]


def fresh(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments again, in memory of their own where an op may write to them; with the strides they have."""
    return {n: _copied(x) for n, x in given.items()}


def _copied(x: Any) -> Any:
    if isinstance(x, list | tuple):
        return type(x)(_copied(each) for each in x)
    if isinstance(x, Tensor) and not x.is_meta and x.numel() and 0 not in x.stride():
        reach = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
        return torch.as_strided(x, (reach,), (1,), x.storage_offset()).clone().as_strided(x.shape, x.stride())
    return x


def cast(x: Any, dtype: torch.dtype) -> Any:
    if isinstance(x, list | tuple):
        return type(x)(cast(each, dtype) for each in x)
    if isinstance(x, Tensor) and x.dtype.is_floating_point:
        return x.to(dtype)
    if isinstance(x, np.ndarray) and x.dtype in (np.float32, np.float64):
        return x.astype(str(dtype).removeprefix("torch."))
    return x


def shown(x: Any) -> str:
    return f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor | np.ndarray) else repr(x)[:80]
