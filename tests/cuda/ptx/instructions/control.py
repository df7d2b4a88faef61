"""Jumps, calls, exits and barriers."""

from __future__ import annotations

import numpy as np

from tests.cuda.ptx.context import Context, Step, instruction, write
from tests.cuda.ptx.errors import Fault
from tests.cuda.ptx.operations import Barrier, Branch, Call, Collective, Exit, IndexedBranch, Return
from tests.cuda.ptx.syntax import Arguments, Operand, Symbol
from tests.cuda.ptx.types import Array, Mask


def _label(context: Context, name: str) -> str:
    if name not in context.function.labels:
        context.refuse(f"no label {name}")
    return name


@instruction("bra")
def _branch(context: Context) -> Branch:
    context.flag("uni")
    (target,) = context.operands(1)
    if not isinstance(target, Symbol):
        context.refuse(f"{target}: not a label")
    return Branch(_label(context, target.name))


@instruction("brx")
def _indexed_branch(context: Context) -> IndexedBranch:
    context.choose("idx")
    context.flag("uni")
    index, targets = context.operands(2)
    labels = context.function.branch_targets.get(targets.name) if isinstance(targets, Symbol) else None
    if labels is None:
        context.refuse("no list of branch targets")
    return IndexedBranch(context.source(index, "u32"), [_label(context, label) for label in labels])


@instruction("call")
def _call(context: Context) -> Call | Step:
    context.flag("uni")
    results, name, arguments = _parts_of_call(context)
    if name.name == "__assertfail":
        return _assert_failed(context, arguments)
    callee = context.core.functions.get(name.name)
    if callee is None:
        context.refuse(f"{name.name} is not defined in this module")
    if len(callee.parameters) != len(arguments.items) or len(callee.returns) != len(results.items):
        context.refuse("the arguments do not match the function")
    call = Call(callee.name)
    core = context.core
    for parameter, argument in zip(callee.parameters, arguments.items, strict=True):
        call.arguments.append((_buffer(context, argument), core.buffers[callee.name, parameter.name]))
    for result, place in zip(callee.returns, results.items, strict=True):
        call.results.append((core.buffers[callee.name, result.name], _buffer(context, place)))
    for source, target in [*call.arguments, *call.results]:
        if source.shape != target.shape:
            context.refuse("an argument has another size than the parameter")
    return call


def _parts_of_call(context: Context) -> tuple[Arguments, Symbol, Arguments]:
    """(results), name, (arguments), of which the lists may be left out."""
    none = Arguments(())
    match context.instruction.operands:
        case (Arguments() as results, Symbol() as name, Arguments() as arguments):
            return results, name, arguments
        case (Arguments() as results, Symbol() as name):
            return results, name, none
        case (Symbol() as name, Arguments() as arguments):
            return none, name, arguments
        case (Symbol() as name,):
            return none, name, none
    context.refuse("only direct calls")


def _buffer(context: Context, operand: Operand) -> Array:
    buffer = None
    if isinstance(operand, Symbol):
        buffer = context.core.buffers.get((context.function.name, operand.name))
    if buffer is None:
        context.refuse(f"{operand}: not a .param variable")
    return buffer


def _assert_failed(context: Context, arguments: Arguments) -> Step:
    core = context.core
    message, file, line = (_buffer(context, operand) for operand in arguments.items[:3])

    def text(buffer: Array, lane: int) -> str:
        address = int(buffer[lane, :8].copy().view(np.uint64)[0])
        start = address - core.memory.base
        found = core.memory.data[max(start, 0) : max(start, 0) + 400].tobytes()
        return found.split(b"\0")[0].decode(errors="replace")

    def step(mask: Mask) -> None:
        lane = int(np.flatnonzero(core.everyone & mask)[0])
        number = int(line[lane, :4].copy().view(np.uint32)[0])
        raise Fault("assert", f"{text(message, lane)} ({text(file, lane)}:{number})", lane)

    return step


@instruction("ret")
def _return(context: Context) -> Return:
    context.flag("uni")
    context.operands(0)
    return Return()


@instruction("exit")
def _exit(context: Context) -> Exit:
    context.operands(0)
    return Exit()


@instruction("trap", "brkpt")
def _trap(context: Context) -> Step:
    context.operands(0)

    def step(mask: Mask) -> None:
        raise Fault("trap", "the kernel stopped itself", int(np.flatnonzero(context.core.everyone & mask)[0]))

    return step


@instruction("bar", "barrier")
def _barrier(context: Context) -> Barrier | Collective:
    if context.flag("warp"):
        context.choose("sync")
        (member_mask,) = context.operands(1)
        return Collective(lambda mask: None, context.source(member_mask, "b32"))
    context.flag("cta")
    if context.flag("sync"):
        if context.instruction.opcode == "barrier":
            context.choose("aligned")
        number, *threads = context.operands(1, 2)
        return Barrier(context.source(number, "u32"), _count(context, threads))
    if context.instruction.opcode == "barrier" or not context.flag("red"):
        context.refuse("of the barriers the engine knows bar.sync, barrier.sync.aligned and bar.red")
    type_name = context.take_type()
    operation = context.choose("popc", "and", "or")
    if type_name != ("u32" if operation == "popc" else "pred"):
        context.refuse(f"{operation} of .{type_name}")
    destination, number, *threads, voted = context.operands(3, 4)
    target = context.target(destination, type_name)

    def finish(yes: int, total: int, lanes: Array) -> None:
        result = {"popc": yes, "and": yes == total, "or": yes > 0}[operation]
        write(target, np.asarray(result), lanes)

    votes = context.predicate(voted)
    return Barrier(context.source(number, "u32"), _count(context, threads), votes, finish)


def _count(context: Context, threads: list[Operand]) -> Array | None:
    return context.source(threads[0], "u32") if threads else None
