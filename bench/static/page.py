"""The pages docs/cuda*.md: the tables that are generated from the figures, between markers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from bench.static import pipes
from bench.static.architectures import ARCHITECTURES, DEVICES
from bench.static.figures import Figures, Kernel
from bench.static.gate import required_share, share
from bench.static.launches import Attention
from bench.static.predict import Prediction, predict_attention, predict_loss, tile_load
from bench.static.tools import ROOT
from bench.static.workloads import attention_workloads, loss_workloads

_BLOCK = re.compile(r"(<!-- begin (\w+)[^>]*-->\n).*?(<!-- end \2 -->)", re.DOTALL)
_SHORT = {"attention_fwd": "fwd", "attention_bwd_keys": "bwd dK dV", "attention_bwd_queries": "bwd dQ"}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table with aligned columns."""
    cells = [list(header), *[list(row) for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


# What the low-rank family's matrix product makes of factors that are stored so.
_PRODUCT = re.compile(r"ProductShape<[^>]*>, (true|false), \(ProductLayout\)(\d)>")
_PRODUCTS = ("y", "dx", "dW")
# And the grouped one of op(A) and op(B), stored by rows or not.
_GROUPED = re.compile(r"grouped_product_kernel<\w+, ProductShape<[^>]*>, (true|false), (true|false)>")
_STORED = {("true", "true"): "y", ("true", "false"): "y, columns", ("false", "false"): "dW"}


def title(kernel: Kernel) -> str:
    """A short name: direction, dtype and head dimension."""
    if product := _PRODUCT.search(kernel.name):
        dropout = " dropout" if product[1] == "true" else ""
        return f"lora {_PRODUCTS[int(product[2])]}{dropout} {kernel.dtype}"
    base = kernel.name.split("<")[0].removesuffix("_kernel").removesuffix("_f32")
    if stored := _GROUPED.search(kernel.name):
        return f"grouped {_STORED[stored[1], stored[2]]} {kernel.dtype}"
    dimension = kernel.tile.D if kernel.tile else re.search(r"<(\d+)[,>]", kernel.name)
    words = [_SHORT.get(base, base), kernel.dtype or ""]
    if dimension:
        words.append(f"D={dimension if isinstance(dimension, int) else dimension[1]}")
    if kernel.tile and not kernel.tensor:
        words.append("unaligned")
    if (kernel.tile and kernel.tile.selects) or re.search(r"f32_kernel<\d+, true>", kernel.name):
        words.append("selected")
    return " ".join(word for word in words if word)


def shown(figures: Figures) -> list[Kernel]:
    """The kernels of the page: float16 differs from bfloat16 in one modifier, so only one of them."""
    return [kernel for kernel in figures.kernels.values() if kernel.dtype != "f16"]


def tensor_kernels(figures: Figures) -> list[Kernel]:
    """Those with tensor cores and asynchronous copies."""
    return [kernel for kernel in shown(figures) if kernel.tensor]


def tiles(figures: Figures) -> str:
    """Which tile serves which head dimensions, and what it costs on sm_80."""
    rows = []
    for kernel in shown(figures):
        dimensions = [p.D for p in kernel.problems if isinstance(p, Attention)]
        machine = kernel.machine["sm_80"]
        if not dimensions or (kernel.tile is None and "<" not in kernel.name) or kernel.name.startswith("delta"):
            continue
        t = kernel.tile
        split = f", columns in {t.parts}" if t and t.parts > 1 else ""
        rows.append(
            [
                title(kernel),
                f"{min(dimensions) - 7}-{max(dimensions)}",
                f"{t.rows} x {t.keys}{split}" if t else "",
                f"{kernel.shared / 1024:.1f}",
                str(machine.usage.registers),
                f"{machine.occupancy.blocks} ({machine.occupancy.share:.0%})",
                machine.occupancy.limit,
            ]
        )
    return table(["kernel", "head dim", "rows x keys", "shared KiB", "registers", "blocks (warps)", "limited by"], rows)


def resources(figures: Figures) -> str:
    """Registers and resident blocks of every kernel on every architecture."""
    rows = []
    for kernel in shown(figures):
        each = [f"{m.usage.registers} / {m.occupancy.blocks}" for m in (kernel.machine[a] for a in ARCHITECTURES)]
        rows.append([title(kernel), str(kernel.threads), f"{kernel.shared / 1024:.1f}", *each])
    return table(["kernel", "threads", "shared KiB", *ARCHITECTURES], rows)


def loops(figures: Figures) -> str:
    """Instructions of the steady-state path per tile and warp, by what they use."""
    rows = []
    for kernel in tensor_kernels(figures):
        for device in DEVICES.values():
            machine = kernel.machine[device.architecture]
            assert machine.steady is not None
            mix = machine.steady.mix
            groups = [
                mix["HMMA"],
                mix["LDSM"],
                mix["LDGSTS"],
                sum(mix[x] for x in ("LDS", "STS", "SHFL", "LDG", "STG")),
                sum(mix[x] for x in pipes.SPECIAL),
                sum(mix[x] for x in pipes.FLOAT),
                sum(mix[x] for x in pipes.MULTIPLY),
                sum(mix[x] for x in pipes.ALU),
            ]
            rest = len(machine.steady.instructions) - sum(groups)
            reached = machine.steady.tensor_share(device.hmma_cycles)
            counts = [f"{x / machine.tiles:g}" for x in (*groups, rest)]
            rows.append([title(kernel), device.architecture, *counts, f"{reached:.1%}"])
    header = [
        "kernel",
        "arch",
        "HMMA",
        "LDSM",
        "LDGSTS",
        "LDS LDG SHFL",
        "special",
        "float",
        "IMAD",
        "integer",
        "rest",
        "share",
    ]
    return table(header, rows)


def others(figures: Figures) -> str:
    """The whole code of the kernels without tensor cores, instructions by what they use, on sm_80 and sm_90."""
    memory = [("LDS",), ("STS",), ("LDGSTS",), ("LDG", "LD"), ("STG", "ST"), ("SHFL",)]
    groups = [pipes.SPECIAL, pipes.FLOAT, pipes.MULTIPLY, pipes.ALU]
    rows = []
    for kernel in shown(figures):
        for arch in ("sm_80", "sm_90") if kernel.tile is None else ():
            mix = kernel.machine[arch].mix
            counts = [sum(mix[x] for x in group) for group in (*groups, *memory)]
            rows.append([title(kernel), arch, *map(str, counts), str(mix.total() - sum(counts)), str(mix.total())])
    header = ["special", "float", "IMAD", "integer", *("LDS", "STS", "LDGSTS", "LDG", "STG", "SHFL"), "rest", "all"]
    return table(["kernel", "arch", *header], rows)


def cycles(figures: Figures) -> str:
    """What one tile costs each part of a multiprocessor."""
    rows = []
    for kernel in tensor_kernels(figures):
        assert kernel.tile is not None
        for device in DEVICES.values():
            load = tile_load(kernel, device)
            steady = kernel.machine[device.architecture].steady
            assert steady is not None
            moved = sum(map(pipes.global_bytes, steady.instructions)) * kernel.tile.warps
            rows.append(
                [
                    title(kernel),
                    device.name,
                    f"{kernel.tile.flop / 1e6:.2f}",
                    f"{moved / kernel.machine[device.architecture].tiles / 1024:.0f}",
                    *(f"{value:.0f}" for value in load.parts().values()),
                    f"{load.serial:.0f}",
                    load.bound[0],
                ]
            )
    parts = ["tensor", "issue", "float", "integer", "special", "shared", "L2"]
    return table(["kernel", "device", "MFLOP", "KiB", *parts, "no overlap", "bound"], rows)


def requirements(figures: Figures) -> str:
    """The shares that are required, and what is reached."""
    rows = []
    for kernel in tensor_kernels(figures):
        required = required_share(kernel)
        if required is not None:
            met = "yes" if share(kernel) >= required else "no"
            rows.append([title(kernel), f"{share(kernel):.1%}", f"{required:.0%}", met])
    return table(["kernel, sm_80", "tensor-core share", "required", "met"], rows)


def predictions(figures: Figures) -> str:
    """PREDICTED times on the three devices."""
    rows = []
    for workload in attention_workloads():
        for device in DEVICES.values():
            p = predict_attention(workload, figures, device)
            rate = f"{workload.flop() / p.serial / 1e12:.0f}-{workload.flop() / p.best / 1e12:.0f}"
            rows.append([f"{workload.problem.direction} {workload.name}", device.name, _span(p), rate, p.bound])
    for loss in loss_workloads():
        for device in DEVICES.values():
            p = predict_loss(loss, figures, device)
            rows.append([loss.name, device.name, _span(p), "", p.bound])
    return table(["PREDICTED, not measured", "device", "ms", "TFLOP/s", "bound at best"], rows)


def _span(p: Prediction) -> str:
    best, serial = f"{p.best * 1e3:.2f}", f"{p.serial * 1e3:.2f}"
    return best if best == serial else f"{best}-{serial}"


TABLES: dict[str, Callable[[Figures], str]] = {
    "requirements": requirements,
    "tiles": tiles,
    "resources": resources,
    "loops": loops,
    "cycles": cycles,
    "others": others,
    "predictions": predictions,
}


RESOURCES = ROOT / "docs" / "cuda_resources.md"  # the one page that shows all architectures
# Which tables stand on which page.
PAGES = {
    ROOT / "docs" / "cuda.md": ("requirements", "tiles", "predictions"),
    RESOURCES: ("resources",),
    ROOT / "docs" / "cuda_figures.md": ("loops", "cycles"),
    ROOT / "docs" / "cuda_code.md": ("others",),
}


def rendered(text: str, figures: Figures, tables: Sequence[str] = tuple(TABLES)) -> str:
    """A page with every marked block generated anew. Raises ValueError when a block is missing or unknown."""
    names = [match[2] for match in _BLOCK.finditer(text)]
    if sorted(names) != sorted(tables):
        raise ValueError(f"the page has the blocks {names}, it needs {list(tables)}")
    return _BLOCK.sub(lambda match: f"{match[1]}{TABLES[match[2]](figures)}\n{match[3]}", text)


def update(figures: Figures) -> None:
    """Writes the tables of all pages."""
    for path, tables in PAGES.items():
        path.write_text(rendered(path.read_text(encoding="utf-8"), figures, tables), encoding="utf-8")
