"""What each op takes as scratch beside inputs and outputs: the formulas of the kernels' sources, one module a family.

For the CPU they are exact (tests/plan/test_scratch.py measures them); for CUDA they follow the sources and are
estimates. An op without a formula takes none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from longspan.ops._define import NAMESPACE, SCRATCH
from longspan.ops.scratch import attention, grouped, list_attention, lora, loss, magnitude, norm, pq, select, topl
from longspan.ops.scratch.workspace import Machine, Workspace

__all__ = [
    "Machine",
    "attention",
    "grouped",
    "list_attention",
    "lora",
    "loss",
    "magnitude",
    "norm",
    "pq",
    "scratch_bytes",
    "select",
    "topl",
]


def scratch_bytes(op: str, arguments: Sequence[Any], machine: Machine) -> int:
    """Bytes that op `longspan::name` takes while it runs on these arguments (fake tensors will do); 0 for other ops."""
    namespace, _, name = op.partition("::")
    formula = SCRATCH.get(name) if namespace == NAMESPACE else None
    if formula is None:
        return 0
    workspace = Workspace(machine)
    formula(workspace, *arguments)
    return workspace.bytes
