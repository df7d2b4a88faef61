"""What one op consists of, and the functions that name the missing parts."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.autograd import Function

import longspan.ops
from longspan import _native, kernels

DEVICES = ("cpu", "cuda")


def declared_ops(ops: Path) -> dict[str, str]:
    """Every op that a module of the folder declares by `define("name", ...)` -> its family (the module)."""
    found = {}
    for path in sorted(ops.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and ast.unparse(node.func).split(".")[-1] == "define"
                and node.args
                and isinstance(node.args[0], ast.Constant)
            ):
                found[str(node.args[0].value)] = path.stem
    return found


def missing_files(root: Path, op: str, family: str) -> list[str]:
    """The parts of an op that are files: reference, header with doc comment, CUDA entry, laws, bench row, docs page.

    An op that works in place (`rope_`) is a form of the op without the underscore and has its entry points.
    """
    entry = op.removesuffix("_")
    header = f"csrc/kernels/{family}/{family}.h"
    parts = {
        f"reference: python/longspan/ops/reference/{family}.py defines no function": (
            f"python/longspan/ops/reference/{family}.py",
            r"^def \w+\(",
        ),
        f"doc comment: no /// above {entry}_cpu in {header}": (
            header,
            rf"^[ \t]*///[^\n]*\n(?:[ \t]*///[^\n]*\n)*[^\n;{{]*\b{entry}_cpu\(",
        ),
        f"cuda: {header} does not declare {entry}_cuda": (header, rf"\b{entry}_cuda\("),
        f"cuda: csrc/ops/{family}.cpp does not register {op} for CUDA": (
            f"csrc/ops/{family}.cpp",
            rf"\(longspan, CUDA, m\) {{[^}}]*\"{op}\"",
        ),
        f"docs: docs/{family}.md does not name {op}": (f"docs/{family}.md", rf"\b{op}\b"),
        f"bench row: bench/test_{family}.py does not name {op}": (f"bench/test_{family}.py", rf"\b{op}\b"),
    }
    found = []
    for message, (name, pattern) in parts.items():
        path = root / name
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if not re.search(pattern, text, re.MULTILINE):
            found.append(message)
    for layer in ("ops", "kernels"):
        if not (root / "tests" / layer / f"test_{family}.py").is_file():
            found.append(f"laws: no tests/{layer}/test_{family}.py")
    return found


def missing_registrations(op: str, names: set[str]) -> list[str]:
    """The parts of an op that live in the running process: schema, fake, kernels, autograd, pybind11 entry."""
    qualified = f"longspan::{op}"
    found = []
    if not hasattr(torch.ops.longspan, op):
        return ["schema: torch does not know the op"]
    if torch._library.simple_registry.singleton.find(qualified).fake_impl.kernel is None:
        found.append("fake: no register_fake")
    for device in DEVICES:
        kernel = _native.has_kernel(op, device)
        if not kernel and (device != "cuda" or _native.built_with_cuda()):
            found.append(f"{device}: no kernel")
    # A backward op is differentiated by the op it belongs to, one in place by an autograd.Function of its module; one
    # that changes lists of parameters has no gradient and must refuse what autograd watches.
    if op.endswith("_"):
        if mutates_lists_only(str(getattr(torch.ops.longspan, op).default._schema)):
            if not getattr(getattr(longspan.ops, op, None), "refuses_grad", False):
                found.append("autograd: the public function is not decorated with ops._in_place.without_grad")
        elif not _functions_that_mark_dirty(op):
            found.append("autograd: no autograd.Function of the op's module calls mark_dirty")
    elif not _has_autograd(op) and not (op.endswith("_bwd") and _has_autograd(f"{op[:-4]}_fwd")):
        found.append("autograd: neither register_autograd nor the backward of an op that has it")
    if op.endswith("_fwd") and f"{op[:-4]}_bwd" not in names:
        found.append("autograd: no op for the backward")
    if op not in dir(kernels):
        found.append("pybind11: longspan.kernels does not have it")
    return found


def mutates_lists_only(schema: str) -> bool:
    """Whether all that a schema writes to are lists of tensors, as those of an optimiser's step."""
    written = re.findall(r"Tensor\(\w+! ?(?:-> ?\w+)?\)(\[\])?", schema)
    return bool(written) and all(written)


def _has_autograd(op: str) -> bool:
    name = f"longspan::{op}"
    return hasattr(torch.ops.longspan, op) and torch._C._dispatch_has_kernel_for_dispatch_key(name, "Autograd")


def _functions_that_mark_dirty(op: str) -> list[type]:
    """autograd.Functions beside the public function of an op that works in place."""
    module = inspect.getmodule(getattr(longspan.ops, op, None))
    found = [x for x in vars(module or longspan.ops).values() if isinstance(x, type) and issubclass(x, Function)]
    return [x for x in found if "mark_dirty" in inspect.getsource(x)]


def errors_unsaid(functions: Iterable[Callable[..., Any]]) -> list[str]:
    """Public functions whose docstring does not say what is raised, nor where that is said."""
    return [f.__name__ for f in functions if not re.search(r"\bRaises\b|\b[Ee]rrors\b|\b[Ss]ee `", f.__doc__ or "")]
