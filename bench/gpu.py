"""`make gpu`: times of the CUDA kernels on this machine's GPU, beside torch's in the same run and the predictions."""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from bench.record import RECORDS
from bench.static.architectures import DEVICES, Device
from bench.static.figures import Figures, collect
from bench.static.page import table
from bench.static.predict import predict_attention
from bench.static.workloads import AttentionWorkload, attention_workloads
from longspan import _native, ops
from longspan.ops import AttentionPattern

ROUNDS = 20
# The products of the prediction page, and what torch calls them.
TORCH_NAMES = {"A100 SXM 80GB": "A100-SXM4-80GB", "H100 SXM": "H100 80GB HBM3", "RTX 4090": "GeForce RTX 4090"}


class NoGpu(RuntimeError):
    """There is nothing to measure on."""


@dataclass(frozen=True)
class Row:
    """One workload: median milliseconds of ours and of torch's dense attention, and the predicted interval, if any."""

    name: str
    device: str
    ours: float
    torch_dense: float
    predicted: tuple[float, float] | None


def check() -> str:
    """The GPU's name. Raises NoGpu with what is missing: a CUDA build of torch, a GPU, or CUDA kernels."""
    if not _native.built_with_cuda():
        raise NoGpu(f"longspan was built without CUDA kernels ({_native.host().reason or 'no nvcc was used'})")
    if torch.version.cuda is None:
        raise NoGpu(f"torch {torch.__version__} is a CPU build; install a CUDA build of torch into .venv")
    if not torch.cuda.is_available():
        raise NoGpu("torch sees no GPU; is there one, and its driver?")
    if torch.cuda.get_device_capability() < (8, 0):
        raise NoGpu(f"{torch.cuda.get_device_name()} is older than compute capability 8.0")
    return torch.cuda.get_device_name()


def pattern_of(workload: AttentionWorkload) -> AttentionPattern:
    """The pattern as the op takes it."""
    kind, size = workload.pattern.kind, workload.pattern.size
    if kind == "groups":
        return AttentionPattern.s2(group_size=size)
    return AttentionPattern.window(size) if kind == "window" else AttentionPattern.full()


def milliseconds(run: Callable[[], object]) -> float:
    """The median time of a call, by events of the stream."""
    run()
    times = []
    for _ in range(ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def device_of(name: str) -> Device | None:
    """The datasheet of a GPU by torch's name of it, None when the page has none."""
    return next((DEVICES[known] for known, words in TORCH_NAMES.items() if words in name), None)


def measure(workload: AttentionWorkload, figures: Figures, name: str) -> Row:
    """One workload on this GPU, forward or backward alone."""
    p = workload.problem
    shapes = ((p.batch, p.heads), (p.batch, p.key_heads), (p.batch, p.key_heads))
    q, k, v = (
        torch.randn(*heads, p.tokens, p.D, device="cuda", dtype=torch.bfloat16, requires_grad=True) for heads in shapes
    )

    def dense() -> torch.Tensor:
        attend = torch.nn.functional.scaled_dot_product_attention
        return attend(q, k, v, is_causal=True, enable_gqa=True)

    def sparse() -> torch.Tensor:
        out = ops.attention(q, k, v, pattern_of(workload))
        assert isinstance(out, torch.Tensor)
        return out

    times = []
    for forward in (sparse, dense):
        if p.direction == "fwd":
            with torch.no_grad():
                times.append(milliseconds(forward))
            continue
        out = forward()
        dout = torch.randn_like(out)
        times.append(milliseconds(lambda out=out, dout=dout: out.backward(dout, retain_graph=True)))
    device = device_of(name)
    predicted = None
    if device is not None:
        found = predict_attention(workload, figures, device)
        predicted = (found.best * 1e3, found.serial * 1e3)
    return Row(f"{p.direction} {workload.name}", name, times[0], times[1], predicted)


def render(rows: Sequence[Row]) -> str:
    """The rows as a markdown table."""
    cells = []
    for row in rows:
        predicted = "no datasheet" if row.predicted is None else f"{row.predicted[0]:.2f}-{row.predicted[1]:.2f}"
        ratio = f"{row.torch_dense / row.ours:.2f}"
        cells.append([row.name, row.device, f"{row.ours:.2f}", predicted, f"{row.torch_dense:.2f}", ratio])
    header = ["workload", "device", "measured ms", "predicted ms", "torch dense ms", "torch / ours"]
    return table(header, cells)


def append(rows: Sequence[Row], path: Path) -> None:
    """Adds one JSON line a row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(asdict(row)) + "\n")


def main(arguments: Sequence[str]) -> int:
    """Exit code: 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether this machine can run it")
    options = parser.parse_args(arguments)
    try:
        name = check()
    except NoGpu as error:
        print(f"nothing to measure on: {error}", file=sys.stderr)
        return 2
    if options.check:
        print(f"{name}, torch {torch.__version__}")
        return 0
    figures = collect()
    rows = [measure(workload, figures, name) for workload in attention_workloads()]
    path = RECORDS / f"gpu-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.jsonl"
    append(rows, path)
    print(f"{render(rows)}\n\nrecorded in {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
