"""Linear maps with adapters on the CPU: ops lora_linear_fwd and lora_linear_bwd against PEFT's layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from bench.conftest import Session
from bench.layer_parts import HUGGING_FACE, KERNELS, OP, error_law, require, write_routes
from bench.race import race, roofline
from longspan import kernels, ops
from longspan.memory import measure
from longspan.ops.reference.lora import dropout_mask, lora_linear
from longspan.ops.reference.norm import norm as norm_reference

MM = "mm"
T, R, ALPHA, EPS = 4096, 8, 16, 1e-5
SMALL = 64  # rows of the gate
PANEL = 2048  # normed rows that exist at a time (kLoraPanel)
REST = 0.25


@dataclass(frozen=True)
class Sizes:
    """x [rows, C], and one map [n, C] with its adapter for each n of N."""

    C: int
    N: tuple[int, ...]
    dropout: float
    normed: bool = False

    @property
    def key(self) -> str:
        outputs, norm = "+".join(map(str, self.N)), "rms," if self.normed else ""
        sizes = f"{norm}T={T},C={self.C},N={outputs},R={R},dropout={self.dropout}"
        return f"lora_linear_fwd, lora_linear_bwd|cpu|float32|{sizes}"

    @property
    def flops(self) -> float:
        """Forward and the gradients of x, A and B; the weight is frozen."""
        return sum(T * (4.0 * self.C * n + 6.0 * R * (self.C + n)) for n in self.N)

    @property
    def predicted_bytes(self) -> int:
        """y, dx, s and ds, the adapters' gradients; with a norm a number a row and two panels of rows."""
        rows = sum(self.N) + self.C + 2 * R * len(self.N) + self.normed
        panels = 2 * PANEL * self.C * self.normed
        return 4 * (T * rows + panels + sum(R * (self.C + n) for n in self.N))


class Maps(nn.Module):
    """Linear maps of one input behind an optional norm, for PEFT to wrap."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.norm = LlamaRMSNorm(sizes.C, EPS) if sizes.normed else nn.Identity()
        self.maps = nn.ModuleList(nn.Linear(sizes.C, n, bias=False) for n in sizes.N)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        z = self.norm(x)
        return tuple(layer(z) for layer in self.maps)


class Inputs:
    """PEFT's layers, their tensors and upstream gradients; every route gives the outputs, dx, and dA and dB of each."""

    def __init__(self, sizes: Sizes, rows: int, threads: int) -> None:
        self.sizes, self.rows, self.threads = sizes, rows, threads
        config = LoraConfig(
            r=R,
            lora_alpha=ALPHA,
            lora_dropout=sizes.dropout,
            target_modules=[f"maps.{i}" for i in range(len(sizes.N))],
            init_lora_weights=False,
        )
        self.peft: Any = get_peft_model(Maps(sizes), config).base_model.model.train()  # type: ignore[arg-type]
        self.norm = self.peft.norm.weight if sizes.normed else None
        self.weights = [layer.base_layer.weight for layer in self.peft.maps]
        self.a = [layer.lora_A["default"].weight for layer in self.peft.maps]
        self.b = [layer.lora_B["default"].weight for layer in self.peft.maps]
        self.scaling: float = self.peft.maps[0].scaling["default"]
        self.x = torch.randn(rows, sizes.C, requires_grad=True)
        self.dys = [torch.randn(rows, n) for n in sizes.N]
        self.seeds = torch.arange(len(sizes.N)) + 2**40

    @property
    def leaves(self) -> list[Tensor]:
        """What gradients are wanted of."""
        return [self.x, *self.a, *self.b]

    def op_forward(self) -> tuple[Tensor, ...]:
        """The torch op."""
        p = self.sizes.dropout
        tensors = zip(self.weights, self.a, self.b, strict=True)
        group = [ops.Projection(w, lora_a=a, lora_b=b, scaling=self.scaling) for w, a, b in tensors]
        if len(group) == 1 and self.norm is None:
            one = group[0]
            return (ops.lora_linear(self.x, one.weight, None, one.lora_a, one.lora_b, one.scaling, p, self.seeds),)
        norm = None if self.norm is None else ops.Norm(self.norm, eps=EPS)
        return ops.norm_lora_linear(self.x, group, norm, dropout_p=p, seed=self.seeds)

    def _with_gradients(self, ys: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return *(y.detach() for y in ys), *torch.autograd.grad(ys, self.leaves, self.dys)

    def op(self) -> tuple[Tensor, ...]:
        """The torch op and its gradients."""
        return self._with_gradients(self.op_forward())

    def hugging_face(self) -> tuple[Tensor, ...]:
        """transformers' norm and PEFT's layers."""
        return self._with_gradients(self.peft(self.x))

    def pybind(self) -> tuple[Tensor, ...]:
        """longspan.kernels, which know no torch: one call a projection, each with the norm."""
        options: dict[str, Any] = {"scaling": self.scaling, "threads": self.threads, "dropout_p": self.sizes.dropout}
        if self.norm is not None:
            options |= {"norm": "rms", "norm_weight": self.norm.detach().numpy(), "eps": EPS}
        x = self.x.detach().numpy()
        results: list[list[Any]] = [[], [], [], []]
        for i, (weight, a, b) in enumerate(zip(self.weights, self.a, self.b, strict=True)):
            arrays = [t.detach().numpy() for t in (weight, a, b)]
            options["seed"] = self.seeds[i : i + 1].numpy()
            y, s, rstd, _ = kernels.lora_linear_fwd(x, arrays[0], None, *arrays[1:], **options)
            found = kernels.lora_linear_bwd(self.dys[i].numpy(), x, *arrays, s, rstd=rstd, **options)
            for kept, array in zip(results, (y, *found.values()), strict=True):
                kept.append(array)
        ys, (first, *others), das, dbs = results
        return tuple(torch.from_numpy(array) for array in (*ys, sum(others, first), *das, *dbs))

    def exact(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The definition in another dtype."""
        x, *adapters = (t.detach().to(dtype).requires_grad_() for t in self.leaves)
        z = x if self.norm is None else norm_reference(x, self.norm.to(dtype), centered=False, eps=EPS)[0]
        count, ys = len(self.weights), []
        for i, weight in enumerate(self.weights):
            mask = dropout_mask(int(self.seeds[i]), *x.shape, self.sizes.dropout)
            a, b = adapters[i], adapters[count + i]
            ys.append(lora_linear(z, weight.to(dtype), None, a, b, self.scaling, mask=mask))
        gradients = torch.autograd.grad(ys, [x, *adapters], [dy.to(dtype) for dy in self.dys])
        return *(y.detach() for y in ys), *gradients

    def saved_bytes(self, forward: Callable[[], Sequence[Tensor]]) -> int:
        """Bytes of the storages that wait for the gradient, parameters aside."""
        found: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            ys = forward()
        parameters = {x.untyped_storage().data_ptr() for x in self.peft.parameters()}
        del ys
        return sum(size for address, size in found.items() if address not in parameters)

    def memory(self) -> dict[str, int]:
        """Peak live bytes of ours beside the inputs, and what ours and PEFT's keep for the gradient."""
        with measure() as m:
            self.op()
        return {
            "peak_live_bytes": m.peak_bytes,
            "predicted_bytes": self.sizes.predicted_bytes,
            "saved_bytes": self.saved_bytes(self.op_forward),
            "hugging_face_saved_bytes": self.saved_bytes(lambda: self.peft(self.x)),
        }


@pytest.mark.parametrize("dropout", [0.0, 0.05])
@pytest.mark.parametrize(
    ("C", "N", "normed"),
    [(576, (576,), False), (2048, (2048,), False), (576, (576, 192, 192), True)],
    ids=["C576", "C2048", "norm_qkv"],
)
def test_lora(
    session: Session, benchmark: BenchmarkFixture, C: int, N: tuple[int, ...], normed: bool, dropout: float
) -> None:
    """Forward and backward with a frozen weight, against PEFT's layers (behind transformers' norm)."""
    sizes = Sizes(C, N, dropout, normed)
    small = Inputs(sizes, SMALL, session.threads)
    checked = error_law((small.op, small.pybind), small.exact(torch.float32), small.exact(torch.float64))
    require(session, sizes.key, checked)
    inputs = Inputs(sizes, T, session.threads)
    product, product_flops = roofline()
    competitors = {OP: inputs.op, KERNELS: inputs.pybind, HUGGING_FACE: inputs.hugging_face, MM: product}
    measured = inputs.memory()
    result = race(benchmark, OP, competitors, session.seconds, REST)
    work = sizes.flops / product_flops
    write_routes(session, benchmark, sizes.key, checked, result, sizes.flops, work, MM, measured, 1.0)
