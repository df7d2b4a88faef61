"""Operations among the lanes of a warp: shuffles, votes, reductions, matches."""

from __future__ import annotations

import numpy as np

from tests.cuda.ptx.context import Context, Step, instruction, write
from tests.cuda.ptx.core import WARP
from tests.cuda.ptx.errors import Fault
from tests.cuda.ptx.operations import Collective
from tests.cuda.ptx.types import Array, Mask


def ballot(values: Array) -> Array:
    """For each lane the bits of its warp's lanes where `values` is true."""
    packed = np.packbits(values.reshape(-1, WARP), axis=1, bitorder="little")
    return np.repeat(packed.view(np.uint32)[:, 0], WARP)


def _sync(context: Context) -> None:
    if not context.flag("sync"):
        context.refuse("only the .sync form")


@instruction("shfl", types=frozenset({"b32"}))
def _shuffle(context: Context) -> Collective:
    type_name = context.take_type()
    _sync(context)
    mode = context.choose("up", "down", "bfly", "idx")
    destination, *operands, member_mask = context.operands(5)
    value, by, clamp = (context.source(operand, type_name) for operand in operands)
    members = context.source(member_mask, type_name)
    first, second = context.pair(destination)
    target = context.target(first, type_name)
    valid = None if second is None else context.target(second, "pred")
    core = context.core
    everywhere = np.arange(core.lanes)
    lane, warp_start = everywhere % WARP, everywhere // WARP * WARP

    def step(mask: Mask) -> None:
        distance, limit = (by & 31).astype(np.int64), (clamp & 31).astype(np.int64)
        segment = (clamp >> 8 & 31).astype(np.int64)
        low = lane & segment
        high = low | (limit & ~segment)
        if mode == "up":
            other = lane - distance
            inside = other >= high
        else:
            if mode == "down":
                other = lane + distance
            elif mode == "bfly":
                other = lane ^ distance
            else:
                other = low | (distance & ~segment)
            inside = other <= high
        other = warp_start + np.where(inside, other, lane)
        if mask is not True:
            active = core.everyone & mask
            silent = active & ~active[other]
            if np.count_nonzero(silent):
                reader = int(np.flatnonzero(silent)[0])
                message = f"shuffle reads from lane {int(other[reader]) % WARP}, which does not take part"
                raise Fault("convergence", message, reader)
        result = value[other]
        write(target, result, mask)
        if valid is not None:
            write(valid, inside, mask)

    return Collective(step, members)


@instruction("vote")
def _vote(context: Context) -> Collective:
    type_name = context.take_type()
    _sync(context)
    mode = context.choose("all", "any", "uni", "ballot")
    if type_name != ("b32" if mode == "ballot" else "pred"):
        context.refuse(f".{mode} of .{type_name}")
    destination, voted, member_mask = context.operands(3)
    votes, members = context.predicate(voted), context.source(member_mask, "b32")
    target, core = context.target(destination, type_name), context.core

    def step(mask: Mask) -> None:
        active = core.everyone & mask
        part = members & ballot(active)
        yes = part & ballot(active & votes())
        if mode == "ballot":
            result = yes
        elif mode == "any":
            result = yes != 0
        elif mode == "all":
            result = yes == part
        else:
            result = (yes == part) | (yes == 0)
        write(target, result, mask)

    return Collective(step, members)


@instruction("redux", types=frozenset({"b32", "u32", "s32"}))
def _reduce(context: Context) -> Collective:
    type_name = context.take_type()
    _sync(context)
    allowed = ("and", "or", "xor") if type_name == "b32" else ("add", "min", "max")
    mode = context.choose(*allowed)
    destination, operand, member_mask = context.operands(3)
    source, members = context.source(operand, type_name), context.source(member_mask, "b32")
    target, core = context.target(destination, type_name), context.core
    operation: np.ufunc = {
        "add": np.add,
        "min": np.minimum,
        "max": np.maximum,
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
    }[mode]

    def step(mask: Mask) -> None:
        for together in _groups(core.everyone & mask, members):
            result = operation.reduce(source[together], dtype=source.dtype)
            write(target, result, together)

    return Collective(step, members)


def _groups(active: Array, members: Array) -> list[Array]:
    """The lanes of each warp that name one another, one array of bool for each group."""
    found = []
    for start in range(0, len(active), WARP):
        inside = np.zeros_like(active)
        inside[start : start + WARP] = active[start : start + WARP]
        found += [inside & (members == mask) for mask in np.unique(members[inside])]
    return found


@instruction("match", types=frozenset({"b32", "b64"}))
def _match(context: Context) -> Collective:
    type_name = context.take_type()
    mode = context.choose("any", "all")
    _sync(context)
    destination, operand, member_mask = context.operands(3)
    source, members = context.source(operand, type_name), context.source(member_mask, "b32")
    first, second = context.pair(destination)
    if second is not None and mode == "any":
        context.refuse("match.any has one destination")
    target = context.target(first, "b32")
    same = None if second is None else context.target(second, "pred")
    core = context.core

    def step(mask: Mask) -> None:
        for together in _groups(core.everyone & mask, members):
            values = np.unique(source[together])
            for value in values:
                equal = together & (source == value)
                bits = ballot(equal)
                write(target, bits if mode == "any" or len(values) == 1 else np.zeros_like(bits), equal)
            if same is not None:
                write(same, np.asarray(len(values) == 1), together)

    return Collective(step, members)


@instruction("activemask", types=frozenset({"b32"}))
def _active_mask(context: Context) -> Step:
    type_name = context.take_type()
    (destination,) = context.operands(1)
    target, core = context.target(destination, type_name), context.core
    return lambda mask: write(target, ballot(core.everyone & mask), mask)
