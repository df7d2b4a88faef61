"""What the kernels' names say: readable names, and the tile sizes among the template arguments."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.static.tools import run

_SHAPE = re.compile(r"(\w+Shape)<([\d, ]+?)(?:, (true|false))?>")  # attention's last one: keys are selected
# Template parameters of the shapes, in order; 16-row tiles of queries a warp holds are MT.
_PARAMETERS = {
    "ForwardShape": ("D", "MT", "BN", "Warps"),
    "KeyGradientShape": ("D", "BM", "Warps", "Parts"),
    "QueryGradientShape": ("D", "BN", "Warps"),
    "ProductShape": ("BM", "BN", "D", "Stages"),  # D is the depth of a step
}
_FIRST = {"__nv_bfloat16": "bf16", "__half": "f16", "float": "f32"}
M, N, K = 16, 8, 16  # of one HMMA


def without_parameters(name: str) -> str:
    """A function's C++ name without its return type and its parameters, which are the last parentheses."""
    depth = 0
    for at in reversed(range(len(name) if name.endswith(")") else 0)):
        depth += (name[at] == ")") - (name[at] == "(")
        if depth == 0:
            return name[:at].removeprefix("void ")
    return name.removeprefix("void ")


def readable(names: Sequence[str]) -> dict[str, str]:
    """Mangled name -> the kernel with its template arguments, without namespaces and parameters."""
    shown = run(["c++filt"], text="\n".join(names)).splitlines() if names else []
    found = {}
    for mangled, full in zip(names, shown, strict=True):
        text = full.replace("(anonymous namespace)::", "").replace("longspan::kernels::", "")
        found[mangled] = without_parameters(text)
    return found


@dataclass(frozen=True)
class Tile:
    """What a tensor-core kernel multiplies at a time. `rows` and `keys` are of one block; `products` counts the
    [rows, keys, D] products of a tile (2 forward), `parts` over how many blocks the gradients' columns are split."""

    D: int
    rows: int
    keys: int
    warps: int
    products: int
    parts: int = 1
    owns_keys: bool = False  # the block stays with its keys and walks rows
    selects: bool = False  # pairs may be seen for their codes

    @property
    def hmma(self) -> int:
        """HMMA instructions of one warp and tile."""
        whole = self.rows * self.keys * self.D // (M * N * K) // self.warps
        # Scores and their gradients are formed in every part.
        return 2 * whole + (self.products - 2) * whole // self.parts

    @property
    def flop(self) -> int:
        """Floating-point operations of one block and tile, on tensor cores."""
        return self.hmma * self.warps * 2 * M * N * K


def tile_of(name: str) -> Tile | None:
    """The tile sizes of a kernel on tensor cores; None for other kernels. Raises ValueError on an unknown shape."""
    match = _SHAPE.search(name)
    if not match:
        return None
    shape, numbers = match[1], [int(x) for x in match[2].split(",")]
    if shape not in _PARAMETERS or len(numbers) != len(_PARAMETERS[shape]):
        raise ValueError(f"{name}: bench/static/kernels.py does not know the parameters of {shape}<{match[2]}>")
    p, selects = dict(zip(_PARAMETERS[shape], numbers, strict=True)), match[3] == "true"
    if shape == "ForwardShape":
        return Tile(p["D"], M * p["MT"] * p["Warps"], p["BN"], p["Warps"], products=2, selects=selects)
    if shape == "ProductShape":
        return Tile(p["D"], p["BM"], p["BN"], warps=4, products=1)
    if shape == "KeyGradientShape":
        size = M * p["Warps"]
        return Tile(p["D"], p["BM"], size, p["Warps"], products=4, parts=p["Parts"], owns_keys=True, selects=selects)
    return Tile(p["D"], M * p.get("MT", 1) * p["Warps"], p["BN"], p["Warps"], products=3, selects=selects)


def dtype_of(name: str) -> str | None:
    """bf16, f16 or f32 when the kernel's first template argument is a dtype, f32 when its name says so."""
    if "_f32_" in name:
        return "f32"
    match = re.search(r"<(\w+)", name)
    return _FIRST.get(match[1]) if match else None


def is_aligned(name: str) -> bool:
    """Whether the kernel copies 16 bytes at a time (the last template argument of attention on tensor cores)."""
    return not (name.startswith("attention") and name.endswith("false>"))


def in_order(names: Iterable[str]) -> list[str]:
    """By kernel, dtype, alignment and D."""
    return sorted(names, key=lambda n: (n.split("<")[0], dtype_of(n) or "", not is_aligned(n), _numbers(n)))


def _numbers(name: str) -> list[int]:
    return [int(x) for x in re.findall(r"\b\d+\b", name)]
