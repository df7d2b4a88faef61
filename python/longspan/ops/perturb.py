"""Noise that is a function of a seed: perturbing weights and stepping along it (MeZO, Evolution Strategies)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from longspan.ops._define import define, op, require
from longspan.ops._in_place import changed, without_grad

DISTRIBUTIONS = ("gaussian", "rademacher")
_WORD = 2**32


@without_grad
def perturb_(
    targets: Sequence[Tensor],
    scale: float | Tensor,
    seed: int | Tensor,
    step: int | Tensor = 0,
    *,
    sources: Sequence[Tensor] | None = None,
    tensor_ids: Sequence[int] | None = None,
    offsets: Sequence[int] | None = None,
    stream: int = 0,
    distribution: str = "gaussian",
) -> None:
    """targets[i] = sources[i] + scale z_i for all tensors of a list, rounded once to nearest even; one launch on CUDA.

    targets: contiguous tensors of any shapes, each float32, bfloat16, or float16 on CUDA, changed in place. sources:
    as many of the same shapes and of any of these dtypes, or None for the targets themselves; a source may be its own
    target, else they do not overlap. Weights that are read only and copies of them that are perturbed come back
    exactly, which adding and taking away the same noise does not give.

    z_i is a pure function of (seed, step, tensor_ids[i], stream, logical index): the same bits on every device, with
    every instruction set, number of threads and chunk. distribution: "gaussian" or "rademacher" (-1 or 1, 128 of them
    for the randomness of 4 normals). tensor_ids: 32 bits each, by default 0, 1, ...; name tensors by them so that a
    subset keeps its noise. offsets: the logical index of a tensor's first element, for a shard of a larger one; by
    default 0. stream: 32 bits that separate uses of one seed.

    scale: a number or float32 of one element; seed: a number of 64 bits or int64 of one element, step the same with
    32 bits. Tensors on the targets' device are read there, so that nothing waits for them and a CUDA graph can keep
    the call; of a step in a tensor the low 32 bits count. A seed and a step are combined by exclusive or of the low
    words: draw seeds over 64 bits, or pairs that differ can meet.

    Not differentiable: call it under torch.no_grad() on parameters. Sums are in float32. No memory is allocated.
    torch's generators are neither read nor advanced. Raises ValueError naming what does not fit, and
    MissingBackendError when no kernel serves the device.
    Source: Malladi et al. 2023, algorithm 1; noise by Salmon et al. 2011 (Philox4x32-10), Box and Muller 1958.
    """
    ids, starts, place = _check("perturb_", targets, tensor_ids, offsets, stream, distribution)
    if sources is not None:
        _check_like("perturb_", "sources", sources, targets)
    arguments = (
        _number("perturb_", "scale", scale, place),
        _integers("perturb_", "seed", [seed] if isinstance(seed, int) else seed, 1, place, -(2**63), 2**63),
        _integers("perturb_", "step", [step] if isinstance(step, int) else step, 1, place, 0, _WORD),
    )
    require("perturb_", place)
    op("perturb_")(list(targets), list(sources or ()), *arguments, ids, starts, stream, distribution)
    changed(targets)


@without_grad
def es_update_(
    targets: Sequence[Tensor],
    coefficients: Sequence[float] | Tensor,
    seeds: Sequence[int] | Tensor,
    steps: int | Sequence[int] | Tensor = 0,
    *,
    alpha: float | Tensor = 1.0,
    decay: float | Sequence[float] | Tensor = 0.0,
    copies: Sequence[Tensor] | None = None,
    tensor_ids: Sequence[int] | None = None,
    offsets: Sequence[int] | None = None,
    stream: int = 0,
    distribution: str = "gaussian",
) -> None:
    """targets[i] = (1 - decay[i]) targets[i] + alpha sum_n coefficients[n] z_i(seeds[n], steps[n]), in one pass.

    targets, tensor_ids, offsets, stream and distribution as in `perturb_`, and z is the noise of it. coefficients
    [N], seeds [N] and steps [N], or one step for all: lists, or float32 and int64 tensors on the targets' device, as
    alpha may be. decay: one number, one a target, or float32 of one or as many elements; biases and norms are often
    exempt. copies: a second result with the same values, of the targets' shapes and any dtype of theirs: the rounded
    weights that a model computes with beside float32 masters.

    w_n = alpha coefficients[n]; members are added up in the order given, w_n z_n each, in float32 and each operation
    rounded; the sum is added to (1 - decay) target and rounded once. So one member with alpha coefficient equal to a
    scale and no decay is `perturb_`, bit for bit, and members with w_n = 0 change nothing. One member with
    coefficient g and alpha -lr is MeZO's step, many with their advantages are that of Evolution Strategies.

    Otherwise as `perturb_`, errors too. Source: Malladi et al. 2023, algorithm 1; Salimans et al. 2017, algorithm 2.
    """
    ids, starts, place = _check("es_update_", targets, tensor_ids, offsets, stream, distribution)
    if copies is not None:
        _check_like("es_update_", "copies", copies, targets)
    members = coefficients.numel() if isinstance(coefficients, Tensor) else len(coefficients)
    if isinstance(steps, int):
        steps = [steps] * members
    arguments = (
        _numbers("es_update_", "coefficients", coefficients, members, place),
        _number("es_update_", "alpha", alpha, place),
        _decay(decay, len(targets), place),
        _integers("es_update_", "seeds", seeds, members, place, -(2**63), 2**63),
        _integers("es_update_", "steps", steps, members, place, 0, _WORD),
    )
    require("es_update_", place)
    op("es_update_")(list(targets), list(copies or ()), *arguments, ids, starts, stream, distribution)
    changed([*targets, *(copies or ())])


def perturb_noise(
    size: int,
    seed: int | Tensor,
    step: int | Tensor = 0,
    *,
    tensor_id: int = 0,
    stream: int = 0,
    offset: int = 0,
    distribution: str = "gaussian",
    device: torch.device | str = "cpu",
) -> Tensor:
    """The noise itself, float32 [size]: of elements offset, offset + 1, ... of tensor `tensor_id` in `perturb_`.

    Raises ValueError for what does not fit, MissingBackendError when no kernel serves the device.
    """
    if size < 0:
        raise ValueError(f"perturb_noise: size is {size}; it must not be negative")
    z = torch.zeros(size, device=device)
    options = {"tensor_ids": [tensor_id], "offsets": [offset], "stream": stream, "distribution": distribution}
    perturb_([z], 1.0, seed, step, **options)  # type: ignore[arg-type]
    return z


def _check(
    name: str,
    targets: Sequence[Tensor],
    tensor_ids: Sequence[int] | None,
    offsets: Sequence[int] | None,
    stream: int,
    distribution: str,
) -> tuple[list[int], list[int], Tensor]:
    """Numbers and offsets of the tensors, and one of these, which tells the place."""
    if not targets:
        raise ValueError(f"{name}: targets is empty; give at least one tensor")
    _check_tensors(name, "targets", targets, targets[0].device)
    if len(set(map(id, targets))) < len(targets):
        raise ValueError(f"{name}: a tensor is among the targets twice; give tied weights once")
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"{name}: distribution is {distribution!r}; allowed: {', '.join(DISTRIBUTIONS)}")
    if not 0 <= stream < _WORD:
        raise ValueError(f"{name}: stream is {stream}; allowed: 0 to 2^32 - 1")
    count = len(targets)
    ids = list(range(count)) if tensor_ids is None else list(tensor_ids)
    starts = [0] * count if offsets is None else list(offsets)
    for label, values, limit, shown in (("tensor_ids", ids, _WORD, "2^32 - 1"), ("offsets", starts, 2**62, "2^62 - 1")):
        if len(values) != count:
            raise ValueError(f"{name}: {label} has {len(values)} elements; it needs one for each of {count} targets")
        for value in values:
            if not 0 <= value < limit:
                raise ValueError(f"{name}: {label} has {value}; allowed: 0 to {shown}")
    return ids, starts, targets[0]


def _check_tensors(name: str, label: str, tensors: Sequence[Tensor], device: torch.device) -> None:
    allowed = [torch.float32, torch.bfloat16, *([torch.float16] if device.type == "cuda" else [])]
    for i, tensor in enumerate(tensors):
        if tensor.dtype not in allowed or tensor.device != device:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
            raise ValueError(
                f"{name}: {label}[{i}] is {tensor.dtype} on {tensor.device}; allowed: {names}, all on {device}"
            )
        if not tensor.is_contiguous():
            raise ValueError(f"{name}: {label}[{i}] is not contiguous; its strides are {tensor.stride()}")


def _check_like(name: str, label: str, tensors: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    if len(tensors) != len(targets):
        raise ValueError(f"{name}: {label} has {len(tensors)} tensors; it needs one for each of {len(targets)} targets")
    _check_tensors(name, label, tensors, targets[0].device)
    for i, (tensor, target) in enumerate(zip(tensors, targets, strict=True)):
        if tensor.shape != target.shape:
            raise ValueError(
                f"{name}: {label}[{i}] has shape {tuple(tensor.shape)}; it must be {tuple(target.shape)}, as "
                f"targets[{i}]"
            )


def _vector(name: str, label: str, given: Tensor, dtype: torch.dtype, count: int, place: Tensor) -> Tensor:
    """The tensor as [count]."""
    if (given.dtype, given.numel(), given.device) != (dtype, count, place.device):
        raise ValueError(
            f"{name}: {label} is {given.dtype} {tuple(given.shape)} on {given.device}; it must be {dtype} with {count} "
            f"elements on {place.device}, or numbers"
        )
    return given.detach().reshape(count).contiguous()


def _numbers(name: str, label: str, given: Sequence[float] | Tensor, count: int, place: Tensor) -> Tensor:
    if isinstance(given, Tensor):
        return _vector(name, label, given, torch.float32, count, place)
    if len(given) != count:
        raise ValueError(f"{name}: {label} has {len(given)} elements; it needs {count}")
    for value in given:
        if not -math.inf < value < math.inf:
            raise ValueError(f"{name}: {label} is {value}; it must be finite")
    return torch.tensor(given, dtype=torch.float32, device=place.device)


def _number(name: str, label: str, given: float | Tensor, place: Tensor) -> Tensor:
    return _numbers(name, label, given if isinstance(given, Tensor) else [given], 1, place)


def _decay(given: float | Sequence[float] | Tensor, count: int, place: Tensor) -> Tensor | None:
    if isinstance(given, Tensor):
        if given.numel() == 1 and given.device == place.device:
            given = given.reshape(1).expand(count)
        return _vector("es_update_", "decay", given, torch.float32, count, place)
    if isinstance(given, int | float):
        if given == 0:
            return None
        given = [given] * count
    return _numbers("es_update_", "decay", given, count, place)


def _integers(
    name: str, label: str, given: Sequence[int] | Tensor, count: int, place: Tensor, low: int, end: int
) -> Tensor:
    if isinstance(given, Tensor):
        return _vector(name, label, given, torch.int64, count, place)
    if len(given) != count:
        raise ValueError(f"{name}: {label} has {len(given)} elements; it needs {count}")
    for value in given:
        if not low <= value < end:
            raise ValueError(f"{name}: {label} is {value}; allowed: {_power(low)} to {_power(end)} - 1")
    return torch.tensor(given, dtype=torch.int64, device=place.device)


def _power(value: int) -> str:
    return {-(2**63): "-2^63", 2**63: "2^63", 2**32: "2^32"}.get(value, str(value))


def _perturb_fake(
    targets: list[Tensor],
    sources: list[Tensor],
    scale: Tensor,
    seed: Tensor,
    step: Tensor,
    tensor_ids: list[int],
    offsets: list[int],
    stream: int,
    distribution: str,
) -> None: ...


def _es_update_fake(
    targets: list[Tensor],
    copies: list[Tensor],
    coefficients: Tensor,
    alpha: Tensor,
    decay: Tensor | None,
    seeds: Tensor,
    steps: Tensor,
    tensor_ids: list[int],
    offsets: list[int],
    stream: int,
    distribution: str,
) -> None: ...


# Everything contiguous; sources empty: the targets. scale [1], seed and step [1] or [N].
define(
    "perturb_",
    "(Tensor(a!)[] targets, Tensor[] sources, Tensor scale, Tensor seed, Tensor step, int[] tensor_ids, "
    "SymInt[] offsets, int stream, str distribution) -> ()",
    _perturb_fake,
)
# copies empty: none; decay [targets] or None.
define(
    "es_update_",
    "(Tensor(a!)[] targets, Tensor(b!)[] copies, Tensor coefficients, Tensor alpha, Tensor? decay, Tensor seeds, "
    "Tensor steps, int[] tensor_ids, SymInt[] offsets, int stream, str distribution) -> ()",
    _es_update_fake,
)
