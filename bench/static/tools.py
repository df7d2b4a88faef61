"""Where the CUDA tools are: on the PATH, beside nvcc, or in PyPI's wheels."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tests.cuda import toolkit

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "static"
KERNELS = ROOT / "csrc" / "kernels"


class ToolError(RuntimeError):
    """A tool failed; the message has its output."""


@cache
def tool(name: str) -> Path:
    """The program `name` of the toolkit. Raises toolkit.MissingToolkit that says what to install."""
    if name == "nvcc":
        return toolkit.require()
    on_path = shutil.which(name)
    if on_path:
        return Path(on_path)
    for folder in (toolkit.require().resolve().parent, toolkit.wheel_root() / "bin"):
        if os.access(folder / name, os.X_OK):
            return folder / name
    raise toolkit.MissingToolkit(f"no {name}: pip install --no-deps nvidia-cuda-{name}")


def run(command: Sequence[str | Path], *, folder: Path | None = None, text: str | None = None) -> str:
    """Standard output followed by standard error of a program; raises ToolError when it fails."""
    path = os.pathsep.join([os.environ.get("PATH", ""), str(toolkit.wheel_root() / "bin")])
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        input=text,
        stdin=subprocess.DEVNULL if text is None else None,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path},  # cuobjdump looks for nvdisasm there
    )
    if done.returncode != 0:
        shown = " ".join(str(part) for part in command)
        raise ToolError(f"exit code {done.returncode} of: {shown}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr
