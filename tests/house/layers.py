"""The arrows of the layer diagram, as data, and the functions that find imports and includes that go against them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

# Lowest first. A module may import from lower layers and from its own folder; folders of one layer are independent.
PYTHON_LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"_native", "errors", "folders", "memory", "registry"}),
    frozenset({"kernels", "ops"}),
    frozenset({"nn"}),
    frozenset({"adapters", "attention", "data", "ffn", "objectives", "positions", "tokens", "updates"}),
    frozenset({"recipe"}),
    frozenset({"report"}),
    frozenset({"patch"}),
    # Above patch: a plan is a dry run of the patched model, not a formula about it.
    frozenset({"plan"}),
    frozenset({"analysis", "eval", "train"}),
    frozenset({"cli"}),
)
# `longspan/__init__.py` and `__main__.py` only name what others define.
ENTRY_POINTS = {"__init__", "__main__"}
TRANSFORMERS_FROM = "patch"
# Folders below patch that may import a Hugging Face package inside a function.
LAZY_EXCEPTIONS = {("adapters", "peft")}
HUGGING_FACE = {"transformers", "peft", "accelerate"}
READS_ENVIRONMENT = {"cli", "_native"}
CALLS_OPS = {"ops"}

CPP_LAYERS = {
    "kernels": {"kernels"},
    "ops": {"kernels", "ops"},
    "host": {"kernels", "host"},
    "simt": {"kernels", "simt"},  # test-only: the CPU emulation of the CUDA kernels
}
# The one door from kernels to the emulation, behind `#if !defined(__CUDACC__)`.
EMULATION_DOOR = ("kernels/common/simt.h", "simt/device.h")
USES_PYTHON = {"host", "simt"}
USES_CUDA = {"kernels", "simt"}
CUDA_HEADERS = ("cuda_runtime.h", "cuda.h", "cuda_fp16.h", "cuda_bf16.h", "vector_types.h")
STABLE_TORCH = re.compile(r"^torch/(csrc/stable/|headeronly/|csrc/inductor/aoti_torch/c/)")
INCLUDE = re.compile(r'^\s*#\s*include\s*(<[^>]+>|"[^"]+")', re.MULTILINE)


def level(name: str) -> int | None:
    """The layer of a top-level module or folder of the package; None when the diagram does not have it."""
    return next((i for i, names in enumerate(PYTHON_LAYERS) if name in names), None)


def _imports(tree: ast.AST, package: list[str]) -> Iterator[tuple[str, int, bool]]:
    """(dotted name, line, inside a function) of every import; relative ones resolved against `package`."""
    inside = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, id(node) in inside
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            base = [*parents, *([node.module] if node.module else [])]
            for alias in node.names:
                yield ".".join([*base, alias.name]), node.lineno, id(node) in inside
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant):
                    yield str(argument.value), node.lineno, id(node) in inside
    for name, line in _attributes(tree):
        if name.startswith("longspan."):
            yield name, line, True


def _attributes(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Dotted attribute chains such as `os.environ` and `torch.ops.longspan`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            names: list[str] = []
            inner: ast.AST = node
            while isinstance(inner, ast.Attribute):
                names.append(inner.attr)
                inner = inner.value
            if isinstance(inner, ast.Name):
                yield ".".join([inner.id, *reversed(names)]), node.lineno


def python_violations(package: Path) -> list[str]:
    """Every import or read in the package folder that goes against the layers."""
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        own = parts[0]
        where = str(path.relative_to(package.parent))
        if own in ENTRY_POINTS and len(parts) == 1:
            continue
        mine = level(own)
        if mine is None:
            found.append(f"{where}: '{own}' is in no layer; add it to PYTHON_LAYERS")
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        folder = ["longspan", *parts[:-1]]
        for name, line, lazy in _imports(tree, folder):
            names = name.split(".")
            if names[0] == "longspan" and len(names) > 1 and names[1] != own:
                theirs = level(names[1])
                if theirs is not None and theirs >= mine:
                    found.append(f"{where}:{line}: {own} must not import longspan.{names[1]}")
            below = mine < (level(TRANSFORMERS_FROM) or 0)
            excused = lazy and (own, names[0]) in LAZY_EXCEPTIONS
            if names[0] in HUGGING_FACE and below and not excused:
                found.append(f"{where}:{line}: nothing below {TRANSFORMERS_FROM} imports {names[0]}")
            if name in ("os.environ", "os.getenv", "sys.argv") and own not in READS_ENVIRONMENT:
                found.append(f"{where}:{line}: only {' and '.join(sorted(READS_ENVIRONMENT))} read {name}")
        for name, line in _attributes(tree):
            if name in ("os.environ", "os.getenv", "sys.argv") and own not in READS_ENVIRONMENT:
                found.append(f"{where}:{line}: only {' and '.join(sorted(READS_ENVIRONMENT))} read {name}")
            if name.startswith("torch.ops.longspan") and own not in CALLS_OPS:
                found.append(f"{where}:{line}: only ops calls {name}")
    return found


def cpp_violations(csrc: Path) -> list[str]:
    """Every #include under csrc/ that goes against the layers."""
    found = []
    for path in sorted(p for p in csrc.rglob("*") if p.suffix in {".h", ".cpp", ".cu", ".cuh"}):
        layer = path.relative_to(csrc).parts[0]
        where = str(path.relative_to(csrc.parent))
        if layer not in CPP_LAYERS:
            found.append(f"{where}: '{layer}' is in no layer; add it to CPP_LAYERS")
            continue
        text = path.read_text(encoding="utf-8")
        for match in INCLUDE.finditer(text):
            quoted, target = match[1][0] == '"', match[1][1:-1]
            line = text.count("\n", 0, match.start(1)) + 1
            folder = target.split("/")[0]
            problem = None
            if quoted:
                # Kernel families include each other as "family/file.h", the layers above as "kernels/family/file.h".
                owner = folder if folder in CPP_LAYERS and layer != "kernels" else "kernels"
                if (str(path.relative_to(csrc)), target) == EMULATION_DOOR:
                    continue
                if layer == "kernels" and not (csrc / "kernels" / target).exists():
                    problem = "kernels include only kernels"
                elif owner not in CPP_LAYERS[layer] or ".." in target.split("/"):
                    problem = f"{layer} must not include {owner}"
            elif folder in ("torch", "ATen", "c10", "caffe2"):
                if layer != "ops":
                    problem = "only csrc/ops includes torch"
                elif not STABLE_TORCH.match(target):
                    problem = "only torch's ABI-stable headers"
            elif folder == "pybind11" and layer not in USES_PYTHON:
                problem = "only csrc/host and csrc/simt include pybind11"
            elif target in ("Python.h",) or (folder == "numpy" and layer not in USES_PYTHON):
                problem = "Python is reached through pybind11 in csrc/host and csrc/simt only"
            elif folder in CUDA_HEADERS and layer not in USES_CUDA:
                problem = "only csrc/kernels and csrc/simt use the CUDA runtime"
            if problem:
                found.append(f"{where}:{line}: {target}: {problem}")
    return found
