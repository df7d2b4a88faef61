"""How the entry points launch their kernels: grid, threads and dynamic shared memory, from the project's host code.

The objects that nvcc made are linked with a stand-in for CUDA's runtime library that notes launches and runs nothing,
so the tile sizes and shared memory here are those of the dispatch itself.
"""

from __future__ import annotations

import hashlib
import itertools
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.static.compile import INCLUDES, Compiled
from bench.static.tools import BUILD, run

HERE = Path(__file__).parent
DTYPES = ("float32", "float16", "bfloat16")
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2")


@dataclass(frozen=True)
class Attention:
    """One call of attention's forward ("fwd") or backward ("bwd")."""

    direction: str
    dtype: str = "bfloat16"
    batch: int = 1
    heads: int = 32
    key_heads: int = 8
    tokens: int = 4096
    D: int = 128
    aligned: bool = True
    selected: bool = False

    def line(self) -> str:
        """For the launcher."""
        sizes = [self.batch, self.heads, self.key_heads, self.tokens, self.tokens, self.D]
        sizes += [int(self.aligned), int(self.selected)]
        return " ".join(["attention", self.direction, self.dtype, *map(str, sizes)])


@dataclass(frozen=True)
class Loss:
    """One call of the cross-entropy of rows of logits; dtype is that of the bias."""

    dtype: str
    rows: int
    vocabulary: int

    def line(self) -> str:
        """For the launcher."""
        return f"loss {self.dtype} {self.rows} {self.vocabulary}"


@dataclass(frozen=True)
class LinearLoss:
    """One call of the segmented loss, with all gradients; its matrix products are the library's."""

    dtype: str
    tokens: int = 64
    vocabulary: int = 1024
    C: int = 32
    segment: int = 16

    def line(self) -> str:
        """For the launcher."""
        return f"linear_loss {self.dtype} {self.tokens} {self.vocabulary} {self.C} {self.segment}"


@dataclass(frozen=True)
class Norm:
    """One call of the row norms, with a residual, weight and bias and all gradients."""

    direction: str
    dtype: str
    weight: str
    centered: bool
    rows: int = 4096
    C: int = 4096

    def line(self) -> str:
        """For the launcher."""
        return f"norm {self.direction} {self.dtype} {self.weight} {self.rows} {self.C} {int(self.centered)}"


@dataclass(frozen=True)
class Rope:
    """One call of the rotary embedding, in place."""

    dtype: str
    interleaved: bool
    aligned: bool
    tokens: int = 4096
    heads: int = 32
    D: int = 128
    pairs: int = 64

    def line(self) -> str:
        """For the launcher."""
        sizes = [self.tokens, self.heads, self.D, self.pairs, int(self.interleaved), int(self.aligned)]
        return " ".join(["rope", self.dtype, *map(str, sizes)])


@dataclass(frozen=True)
class Glu:
    """One call of a gated activation."""

    direction: str
    dtype: str
    activation: str
    rows: int = 4096
    F: int = 4096

    def line(self) -> str:
        """For the launcher."""
        return f"glu {self.direction} {self.dtype} {self.activation} {self.rows} {self.F}"


@dataclass(frozen=True)
class Lora:
    """One call of a group of two low-rank linear maps behind a norm, with all gradients."""

    direction: str
    dtype: str
    adapter: str
    dropout: bool
    rows: int = 4096
    C: int = 4096
    N: int = 4096
    R: int = 16

    def line(self) -> str:
        """For the launcher."""
        sizes = [self.rows, self.C, self.N, self.R, int(self.dropout)]
        return " ".join(["lora", self.direction, self.dtype, self.adapter, *map(str, sizes)])


@dataclass(frozen=True)
class BlockScore:
    """One call of the scores of pairs of blocks, causal, blocks of 64 tokens."""

    dtype: str
    aligned: bool
    tokens: int = 4096
    heads: int = 32
    key_heads: int = 8
    D: int = 128

    def line(self) -> str:
        """For the launcher."""
        sizes = [self.tokens, self.heads, self.key_heads, self.D, int(self.aligned)]
        return " ".join(["block_score", self.dtype, *map(str, sizes)])


@dataclass(frozen=True)
class Sparse:
    """One call of an op of codes, kept keys, lists or routed blocks; `by_rows` is for grouped products alone."""

    family: str
    what: str
    dtype: str
    by_rows: bool = True

    def line(self) -> str:
        """For the launcher."""
        side = [str(int(self.by_rows))] if self.family == "grouped" else []
        return " ".join([self.family, self.what, self.dtype, *side])


SPARSE = {
    "pq": ("encode1", "encode2", "loss", "stats"),
    "topl": ("threshold", "indices", "tables"),
    "list_attention": ("fwd", "bwd", "transpose"),
    "grouped": ("expand", "reduce", "weight"),
}


@dataclass(frozen=True)
class TensorList:
    """One call of an op over a list of tensors; dtype is that of gradients, or of parameters."""

    family: str
    what: str
    dtype: str

    def line(self) -> str:
        """For the launcher."""
        return f"{self.family} {self.what} {self.dtype}"


LISTS = {
    "magnitude": ("kth", "histogram", "lower", "squares"),
    "perturb": ("gaussian", "rademacher"),
    "update": ("adamw", "sgd"),
}
Problem = Attention | Loss | LinearLoss | Norm | Rope | Glu | Lora | BlockScore | Sparse | TensorList


@dataclass(frozen=True)
class Launch:
    """One kernel launch; `kernel` is the mangled name, `shared` the dynamic shared memory in bytes."""

    kernel: str
    blocks: int
    threads: int
    shared: int


def launcher(objects: Sequence[Compiled], build: Path = BUILD) -> Path:
    """The program that turns problems into launches, built when an object or its source changed."""
    parts = [HERE / name for name in ("launches.cpp", "sparse_launches.cpp", "list_launches.cpp", "fake_runtime.cpp")]
    digest = hashlib.sha256()
    for path in [*parts, *(HERE / f"{name}.h" for name in ("fake_runtime", "sparse_launches", "list_launches"))]:
        digest.update(path.read_bytes())
    for compiled in objects:
        digest.update(str(compiled.object).encode())  # its folder is named by a hash
    program = build / "launches" / digest.hexdigest()[:16]
    if not program.is_file():
        shutil.rmtree(program.parent, ignore_errors=True)
        program.parent.mkdir(parents=True)
        includes = [f"-I{path}" for path in (*INCLUDES, HERE)]
        run(["g++", "-std=c++20", "-O1", *includes, *parts, *(x.object for x in objects), "-o", program])
    return program


def launches(program: Path, problems: Iterable[Problem]) -> list[list[Launch]]:
    """The launches of each problem, in order."""
    lines = [problem.line() for problem in problems]
    found: list[list[Launch]] = [[] for _ in lines]
    for line in run([program], text="\n".join(lines)).splitlines():
        number, kernel, *sizes = line.split()
        found[int(number)].append(Launch(kernel, *map(int, sizes)))
    return found


def every_dispatch() -> list[Problem]:
    """Problems that together reach every kernel: all dtypes, head dimensions and alignments."""
    found: list[Problem] = [
        Attention(direction, dtype, tokens=256, D=D, aligned=aligned, selected=selected)
        for dtype in DTYPES
        for direction in ("fwd", "bwd")
        for aligned, selected in ((True, False), (False, False), (True, True))
        for D in range(8, 257, 8)
    ]
    found += [Loss(dtype, 8, 1024) for dtype in DTYPES]
    found += [LinearLoss(dtype) for dtype in ("float32", "bfloat16")]
    found += [Rope(dtype, *options) for dtype in DTYPES for options in itertools.product((False, True), repeat=2)]
    found += [BlockScore(dtype, aligned) for dtype in DTYPES for aligned in (True, False)]
    found += [
        Sparse(family, what, dtype, by_rows)
        for family, parts in SPARSE.items()
        for what, dtype, by_rows in itertools.product(parts, DTYPES, (True, False))
    ]
    found += [
        TensorList(family, what, dtype)
        for family, parts in LISTS.items()
        for what, dtype in itertools.product(parts, ("float32", "bfloat16"))
    ]
    found += [Glu(*options) for options in itertools.product(("fwd", "bwd"), DTYPES, ACTIVATIONS)]
    found += [
        Lora(direction, dtype, adapter, dropout)
        for direction in ("fwd", "bwd")
        for dtype in DTYPES
        for adapter in sorted({"float32", dtype})
        for dropout in (False, True)
    ]
    return found + [
        Norm(direction, dtype, weight, centered)
        for direction in ("fwd", "bwd")
        for dtype in DTYPES
        for weight in sorted({"float32", dtype})
        for centered in (False, True)
    ]
