"""The rules of CUDA kernels (the top of csrc/kernels/common/simt.h), and the functions that find lines against them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

# The one file that may do all this: it defines the wrappers.
WRAPPERS = "common/simt.h"


@dataclass(frozen=True)
class Rule:
    """`pattern` is what a kernel must not contain outside comments and strings; `advice` is what to write instead."""

    name: str
    pattern: re.Pattern[str]
    advice: str


def _rule(name: str, pattern: str, advice: str) -> Rule:
    return Rule(name, re.compile(pattern), advice)


RULES = (
    _rule("asm", r"\b(asm|__asm|__asm__)\b", "PTX is reached through the wrappers of namespace ptx"),
    _rule("launch", r"<<<|\bcudaLaunchKernel\w*", "launches go through simt::launch"),
    _rule("shared", r"\b__shared__\b", "shared memory is simt::dyn_smem<T>() or SIMT_SHARED(T, name)"),
    _rule(
        "warp",
        r"\b(__(shfl|shfl_up|shfl_down|shfl_xor|ballot|any|all)\s*\(|__activemask\b)",
        "warp operations name their lanes: the _sync form",
    ),
    _rule(
        "half",
        r"\b(__hfma\w*|h2?(exp|exp2|exp10|log|log2|log10|sqrt|rsqrt|rcp|sin|cos|tanh|floor|ceil|rint|trunc)2?\s*\()",
        "arithmetic is in float; these do not exist on the host",
    ),
    _rule(
        "unmodelled",
        r"(?i)\b\w*(wgmma|mbarrier|tensormap|cp_async_bulk|cluster_dims|cooperative_groups|this_grid|grid_group)\w*\b",
        "the emulation does not model it: stay on mma.sync and cp.async",
    ),
    _rule(
        "runtime",
        r"\bcuda(Malloc|Free|HostAlloc|Memcpy(?!\w*Async)|DeviceSynchronize|StreamSynchronize|EventSynchronize)\w*\s*\(",
        "kernels neither allocate nor wait: scratch comes from the context",
    ),
)

ATOMIC = re.compile(r"\batomic(Add|Sub|Exch|Min|Max|CAS)\s*\(\s*([^,]*),")
FLOATING = r"(?:float|double|__half2?|__nv_bfloat162?)"
INTEGER = r"(?:u?int(?:8|16|32|64)?(?:_t)?|unsigned|long|size_t)"


def without_comments(text: str) -> str:
    """The code with comments and the contents of strings blanked, line breaks kept."""

    def blank(match: re.Match[str]) -> str:
        kept = '""' if match[0].startswith('"') else ""
        return kept + "\n" * match[0].count("\n")

    return re.sub(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?\*/', blank, text, flags=re.DOTALL)


def _is_integer(code: str, operand: str) -> bool:
    """Whether the array or variable that an atomic changes is declared as an integer somewhere in the file."""
    if re.search(rf"<\s*{INTEGER}[\s\w]*\*\s*>", operand):
        return True
    names = re.findall(r"[A-Za-z_]\w*", operand)
    if not names:
        return False
    # `&counts[i]`, `io.counts + i`: the last name before an index or an offset is the array.
    base = re.match(r"[&*(\s]*((?:[A-Za-z_]\w*(?:\.|->))*)([A-Za-z_]\w*)", operand)
    name = base[2] if base else names[0]

    def declared(types: str) -> bool:
        pattern = rf"\b{types}\b[\s*&\w]*\b{name}\b|SIMT_SHARED\(\s*{types}\b[^,]*,\s*{name}\b"
        return re.search(pattern, code) is not None

    return declared(INTEGER) and not declared(FLOATING)


def violations(text: str) -> list[tuple[int, str, str]]:
    """(line, rule, advice) of everything in a source that is against the rules."""
    code = without_comments(text)
    found = [
        (code.count("\n", 0, match.start()) + 1, rule.name, f"{match[0].rstrip(' (')}: {rule.advice}")
        for rule in RULES
        for match in rule.pattern.finditer(code)
    ]
    for match in ATOMIC.finditer(code):
        if not _is_integer(code, match[2]):
            line = code.count("\n", 0, match.start()) + 1
            what = f"atomic{match[1]} on {match[2].strip()}"
            found.append((line, "atomic", f"{what}: not declared as an integer here; float sums need a fixed order"))
    return sorted(found)


def device_sources(kernels: Path) -> list[Path]:
    """Kernels, and headers with device code."""
    found = [*kernels.rglob("*.cu"), *kernels.rglob("*.cuh")]
    for header in kernels.rglob("*.h"):
        text = header.read_text(encoding="utf-8")
        if re.search(r"\b(SIMT_DEVICE|__device__|__global__)\b", text):
            found.append(header)
    return sorted(path for path in found if str(path.relative_to(kernels)) != WRAPPERS)
