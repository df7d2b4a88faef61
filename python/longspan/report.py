"""What this installation has: versions, libraries, instruction set, which op runs where, and what surprises."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
from dataclasses import dataclass, field

from longspan import _native

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "numpy")
OP_MODULES = ("longspan.ops",)
DEVICES = ("cpu", "cuda")
NOTES = {
    "clipping": "longspan.train clips inside the step, by the norm of what gradient masks keep; another trainer clips "
    "before it, by the norm of the dense gradient: turn that off and give clip to the optimizer",
}


@dataclass(frozen=True)
class Report:
    """The environment as data; `str()` is the text that `longspan report` prints."""

    versions: dict[str, str]
    libraries: dict[str, str]
    instruction_set: str
    threads: int
    cuda: str
    ops: dict[str, dict[str, str]] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = ["versions"]
        lines += [f"  {name:<14}{value}" for name, value in self.versions.items()]
        lines += ["libraries"]
        lines += [f"  {name:<14}{value}" for name, value in self.libraries.items()]
        lines += [
            "hardware",
            f"  {'cpu':<14}{self.instruction_set}, {self.threads} threads",
            f"  {'cuda':<14}{self.cuda}",
        ]
        lines += ["ops"]
        for name, where in self.ops.items():
            lines.append(f"  {name:<28}" + ", ".join(f"{device}: {state}" for device, state in where.items()))
        lines += ["notes", *(f"  {name:<14}{note}" for name, note in NOTES.items())]
        return "\n".join(lines)


def report() -> Report:
    """Gathers the report. Never raises for a missing library, torch build or GPU: the reason is in the result."""
    versions = {
        "longspan": importlib.import_module("longspan").__version__,
        "python": platform.python_version(),
    }
    versions |= {name: _version(name) for name in PACKAGES}
    libraries = {}
    for library in (_native.ops(), _native.host()):
        libraries[library.name] = (
            f"loaded from {library.path}" if library.reason is None else f"missing: {library.reason}"
        )
    try:
        import torch
    except ImportError as error:
        return Report(versions, libraries, _instruction_set(), 0, f"unknown: torch does not import: {error}")
    for module in OP_MODULES:
        importlib.import_module(module)
    from longspan.ops._define import REGISTERED

    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU visible to torch"
    ops = {name: {device: _state(name, device) for device in DEVICES} for name in sorted(REGISTERED)}
    return Report(versions, libraries, _instruction_set(), torch.get_num_threads(), cuda, ops)


def text() -> str:
    """The report as printed by `longspan report` and `python -m longspan`."""
    return str(report())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _instruction_set() -> str:
    module = _native.host().module
    if module is None:
        return "unknown (the native module did not load)"
    try:
        return module.instruction_set()
    except ValueError as error:
        return str(error)


def _state(name: str, device: str) -> str:
    if _native.ops().reason is not None:
        return "missing (library did not load)"
    return "yes" if _native.has_kernel(name, device) else "not in this build"
