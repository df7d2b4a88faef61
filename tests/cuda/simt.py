"""Runs CUDA kernels on the CPU: builds the source engine of csrc/simt and calls its entries by name.

    result = simt.run("attention_fwd", {"q": q, "k": k, "v": v, ...}, build="hooks", seed=1)
    assert not result.reports, result.text()
    result["out"]

bfloat16 arrays travel as uint16 bit patterns, in both directions; float16 arrays as numpy's float16.
"""

from __future__ import annotations

import atexit
import fcntl
import functools
import importlib.util
import os
import pickle
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import pybind11

from tests.cuda import toolkit

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "simt"
Build = Literal["plain", "hooks", "asan"]
BUILDS: tuple[Build, ...] = ("plain", "hooks", "asan")
Argument = np.ndarray | int | float | str | bool | list[int] | None


@dataclass(frozen=True)
class Report:
    """One thing that a run found wrong. Lines are of the project's own file, whatever was inlined there."""

    rule: str
    message: str
    kernel: str
    file: str
    line: int
    other_file: str
    other_line: int
    block: tuple[int, int, int] | None
    thread: tuple[int, int, int] | None
    other_thread: int | None
    address: int
    array: str
    offset: int
    count: int
    trace: list[str]

    def __str__(self) -> str:
        text = f"{self.rule}: {self.message}\n  at {self.file or 'unknown place'}:{self.line} in {self.kernel}"
        if self.block is not None:
            text += f", block {self.block}, thread {self.thread}"
        if self.other_file:
            text += f"\n  other: {self.other_file}:{self.other_line}"
            text += f", thread {self.other_thread}" if self.other_thread is not None else ""
        if self.count > 1:
            text += f"\n  {self.count} times"
        return text


@dataclass(frozen=True)
class BankConflict:
    """A line whose shared-memory requests took `extra_passes` more than they need. `ldmatrix` counts in all builds,
    ordinary loads and stores in the hooks build."""

    file: str
    line: int
    requests: int
    extra_passes: int


@dataclass(frozen=True)
class Launch:
    """A kernel launch: C++ name, extents, bytes of dynamic shared memory, the bytes of each parameter."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    smem_bytes: int
    parameters: list[bytes]


@dataclass(frozen=True)
class DeviceArray:
    """An array of the run's device memory; `contents` is empty where it was not written before the first launch."""

    name: str
    address: int
    size: int
    contents: bytes


@dataclass(frozen=True)
class Product:
    """A call of the matrix library: C = op(A) op(B) + beta C, as GemmArgs in csrc/kernels/common/context.h."""

    transpose_a: bool
    transpose_b: bool
    m: int
    n: int
    k: int
    a: int
    lda: int
    dtype_a: str
    b: int
    ldb: int
    dtype_b: str
    c: int
    ldc: int
    dtype_c: str
    beta: float


@dataclass(frozen=True)
class Recording:
    """What a run launched and multiplied, in order, on which arrays; `outputs` has the results' addresses."""

    steps: list[Launch | Product]
    arrays: list[DeviceArray]
    outputs: dict[str, int]


@dataclass
class Result:
    """What a run wrote and what was found. `unwritten[name]` counts bytes of an output that no thread wrote: exactly in
    the hooks build, elsewhere elements that still hold the poison (all bits one). `error` is what the entry threw."""

    outputs: dict[str, np.ndarray]
    reports: list[Report]
    statistics: dict[str, int]
    unwritten: dict[str, int] = field(default_factory=dict)
    conflicts: list[BankConflict] = field(default_factory=list)
    error: str = ""
    recording: Recording | None = None

    def __getitem__(self, name: str) -> np.ndarray:
        return self.outputs[name]

    def rules(self) -> set[str]:
        return {report.rule for report in self.reports}

    def text(self) -> str:
        """All reports, to be read by a person."""
        return "\n".join(map(str, self.reports))


def _tool(name: str) -> str:
    """A build tool of this environment, else of the machine."""
    own = Path(sys.executable).with_name(name)
    return str(own) if own.is_file() else name


def _compiler_file(name: str) -> str:
    command = [os.environ.get("CXX", "g++"), f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _checked(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}")


@functools.cache
def build(name: Build, library: str = "simt") -> Path:
    """Builds one library when something changed, looked at once a process, and returns its path."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        configure = [_tool("cmake"), "-S", str(ROOT / "csrc" / "simt"), "-B", str(FOLDER), "-G", "Ninja"]
        configure += [
            f"-DCMAKE_CXX_COMPILER={os.environ.get('CXX', 'g++')}",
            f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DSIMT_CUDA_INCLUDE={';'.join(map(str, toolkit.include_dirs()))}",
            f"-DSIMT_CUTLASS_INCLUDE={';'.join(map(str, toolkit.cute_include_dirs()))}",
        ]
        if not (FOLDER / "build.ninja").is_file():
            _checked(configure)
        _checked([_tool("ninja"), "-C", str(FOLDER), "-j1", f"_{library}_{name}.so"])
    return FOLDER / f"_{library}_{name}.so"


@functools.cache
def load(path: Path) -> Any:
    """A library as a Python module of this process."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(module: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Runs a request in this process; what the entry throws comes back as a string."""
    try:
        return module.run(request["name"], request["arguments"], request["seed"], request["mutant"], request["record"])
    except Exception as error:
        return {"raised": f"{type(error).__name__}: {error}"}


class Worker:
    """A process that keeps one library loaded: a crash there is an error here."""

    def __init__(self, name: Build, library: str) -> None:
        path = build(name, library)
        environment = dict(os.environ)
        if name == "asan":
            # Before Python: the sanitizer's own functions, and the C++ library whose exceptions it intercepts.
            environment["LD_PRELOAD"] = " ".join(_compiler_file(name) for name in ("libasan.so", "libstdc++.so.6"))
            environment["ASAN_OPTIONS"] = ":".join(ASAN_OPTIONS)
        self.name = path.stem
        self.output: IO[bytes] = tempfile.TemporaryFile("ab+")  # noqa: SIM115 - lives as long as the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.cuda.worker", str(path)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.output,
        )
        atexit.register(self.stop)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            send(self.process.stdin, request)
            answer = receive(self.process.stdout)
            self.output.truncate(0)
            return answer
        except (EOFError, BrokenPipeError) as error:
            code = self.process.wait()
            self.output.seek(0)
            text = self.output.read().decode(errors="replace")[-8000:]
            raise RuntimeError(f"the {self.name} worker ended with {code} in {request['name']}:\n{text}") from error

    def stop(self) -> None:
        if self.process.poll() is None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process.wait()


# Errors go on (the callback makes reports of them), every time they happen; faults are the engine's.
ASAN_OPTIONS = (
    "halt_on_error=0",
    "suppress_equal_pcs=0",
    "detect_leaks=0",
    "detect_stack_use_after_return=0",
    "handle_segv=0",
    "handle_sigbus=0",
    "handle_sigfpe=0",
    "handle_sigill=0",
    "use_sigaltstack=0",
    "symbolize=0",
    "print_legend=0",
    "verify_asan_link_order=0",
)
_workers: dict[tuple[Build, str], Worker] = {}


def send(stream: IO[bytes], message: dict[str, Any]) -> None:
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(struct.pack("<Q", len(data)) + data)
    stream.flush()


def receive(stream: IO[bytes]) -> dict[str, Any]:
    header = stream.read(8)
    if len(header) < 8:
        raise EOFError("the other process has ended")
    (length,) = struct.unpack("<Q", header)
    return pickle.loads(stream.read(length))


def run(
    name: str,
    arguments: Mapping[str, Argument],
    *,
    build: Build = "plain",
    seed: int = 0,
    mutant: int = 0,
    library: str = "simt",
    record: bool = False,
) -> Result:
    """Runs the entry `name` and returns its outputs and reports.

    `seed` chooses the order of threads and blocks (0: increasing; odd: random; even: one warp as far as it can go) and
    on which side arrays touch their guard page. `mutant` is the planted bug that `simt::mutant(n)` asks for, 0 none.
    `library` is "simt" for the project's kernels or "rules" for those of the engine's own tests. `record` keeps what
    was launched in `Result.recording`.
    """
    values = {key: np.ascontiguousarray(v) if isinstance(v, np.ndarray) else v for key, v in arguments.items()}
    request = {"name": name, "arguments": values, "seed": seed, "mutant": mutant, "record": record}
    if build == "plain":
        answer = call(load(_built(build, library)), request)
    else:
        worker = _workers.get((build, library))
        if worker is None or worker.process.poll() is not None:
            worker = _workers[build, library] = Worker(build, library)
        answer = worker.ask(request)
    if "raised" in answer:
        raise RuntimeError(f"{name}: {answer['raised']}")
    reports = [Report(**report) for report in answer.pop("reports")]
    conflicts = [BankConflict(*row) for row in answer.pop("conflicts")]
    kept = answer.pop("recording")
    if kept is not None:
        steps = [Product(**row) if isinstance(row, dict) else Launch(*row) for row in kept["steps"]]
        kept = Recording(steps, [DeviceArray(*row) for row in kept["arrays"]], kept["outputs"])
    return Result(reports=reports, conflicts=conflicts, recording=kept, **answer)


_built = build  # `run` has a parameter of that name
