"""Problems of linear maps with adapters that the op tests and the CUDA tests share, and their oracle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longspan.ops import Norm, Projection, lora_linear, norm_lora_linear

F32, F64 = torch.float32, torch.float64
PARTS = ("weight", "bias", "lora_a", "lora_b", "residual")  # tensors of one projection; i is appended to the name


@dataclass(frozen=True)
class Problem:
    """x [T,C] through a norm ("none", "rms", "layer") and one projection for each N; a rank of 0 is no adapter."""

    T: int = 9
    C: int = 32
    N: tuple[int, ...] = (24,)
    ranks: tuple[int, ...] = (4,)
    bias: bool = False
    residual: bool = False
    norm: str = "none"
    norm_weight: bool = True
    norm_bias: bool = False
    wide_norm: bool = False  # float32 beside 16-bit rows
    wide_adapters: bool = False
    weight_offset: float = 0.0
    dropout: float = 0.0
    scaling: float = 0.75
    eps: float = 1e-5

    @property
    def normed(self) -> bool:
        return self.norm != "none"

    @property
    def scalings(self) -> tuple[float, ...]:
        """One a projection, all different."""
        return tuple(self.scaling * (1 + i / 4) for i in range(len(self.N)))

    @property
    def seeds(self) -> Tensor:
        """One a projection; the second key word of each is used, and one is negative."""
        return torch.tensor([3 * 2**40 + 11, -7 * 2**35 - 5, 2**63 - 1, 0][: len(self.N)])

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """What the problem has of x, norm_weight, norm_bias, and of PARTS with the projection's number."""
        g = torch.Generator().manual_seed(self.T * 1000 + self.C)

        def draw(*shape: int, wide: bool = False, scale: float = 1.0) -> Tensor:
            x = torch.randn(*shape, generator=g, dtype=F64) * scale
            return x.to(F32 if wide and dtype != F64 else dtype)

        found = {"x": draw(self.T, self.C)}
        if self.normed and self.norm_weight:
            found["norm_weight"] = draw(self.C, wide=self.wide_norm)
        if self.normed and self.norm_bias:
            found["norm_bias"] = draw(self.C, wide=self.wide_norm)
        for i, (n, rank) in enumerate(zip(self.N, self.ranks, strict=True)):
            found[f"weight{i}"] = draw(n, self.C, scale=self.C**-0.5)
            if self.bias:
                found[f"bias{i}"] = draw(n)
            if rank:
                found[f"lora_a{i}"] = draw(rank, self.C, wide=self.wide_adapters, scale=self.C**-0.5)
                found[f"lora_b{i}"] = draw(n, rank, wide=self.wide_adapters, scale=rank**-0.5)
            if self.residual:
                found[f"residual{i}"] = draw(self.T, n)
        return found

    def upstream(self, dtype: torch.dtype) -> list[Tensor]:
        """The gradients of the outputs."""
        g = torch.Generator().manual_seed(7)
        return [torch.randn(self.T, n, generator=g, dtype=F64).to(dtype) for n in self.N]

    def call(self, tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """The public function: lora_linear for one projection without a norm, else norm_lora_linear."""
        projections = [
            Projection(**{part: tensors.get(f"{part}{i}") for part in PARTS}, scaling=scaling)
            for i, scaling in enumerate(self.scalings)
        ]
        x, seeds = tensors["x"], self.seeds.to(tensors["x"].device) if self.dropout else None
        if len(self.N) == 1 and not self.normed:
            p = projections[0]
            options: dict[str, Any] = {"dropout_p": self.dropout, "seed": seeds, "residual": p.residual}
            return (lora_linear(x, p.weight, p.bias, p.lora_a, p.lora_b, p.scaling, **options),)
        norm = Norm(tensors.get("norm_weight"), tensors.get("norm_bias"), self.norm, self.eps, self.weight_offset)
        return norm_lora_linear(x, projections, norm if self.normed else None, dropout_p=self.dropout, seed=seeds)

    def run(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Outputs y0, y1, ... and the gradient d<name> of every tensor."""
        leaves = {name: x.detach().clone().requires_grad_() for name, x in tensors.items()}
        ys = self.call(leaves)
        torch.autograd.backward(ys, [dy.to(tensors["x"].device) for dy in self.upstream(tensors["x"].dtype)])
        return _values(ys, leaves)

    def oracle(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        """The same with the definition computed in `dtype`, rounded after each step; wide tensors stay float32."""
        leaves = {}
        for name, x in tensors.items():
            wide = dtype.itemsize < 4 and x.dtype == F32
            leaves[name] = x.detach().to(F32 if wide else dtype).requires_grad_()
        z = self._normed(leaves, dtype)
        ys = []
        for i, scaling in enumerate(self.scalings):
            y = z @ leaves[f"weight{i}"].T
            if self.bias:
                y = y + leaves[f"bias{i}"]
            if self.ranks[i]:
                a, b = leaves[f"lora_a{i}"], leaves[f"lora_b{i}"]
                y = (y + scaling * ((self._dropped(z, i).to(a.dtype) @ a.T) @ b.T)).to(dtype)
            ys.append(y + leaves[f"residual{i}"] if self.residual else y)
        torch.autograd.backward(ys, [dy.to(dtype) for dy in self.upstream(tensors["x"].dtype)])
        return _values(ys, leaves)

    def _normed(self, leaves: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
        if not self.normed:
            return leaves["x"]
        wide = F64 if dtype == F64 else F32
        rows = leaves["x"].to(wide)
        if self.norm == "layer":
            rows = rows - rows.mean(-1, keepdim=True)
        rows = rows / (rows.square().mean(-1, keepdim=True) + self.eps).sqrt()
        weight, bias = leaves.get("norm_weight"), leaves.get("norm_bias")
        if weight is not None:
            rows = rows * (weight.to(wide) + self.weight_offset)
        elif self.weight_offset:
            rows = rows * self.weight_offset
        return (rows if bias is None else rows + bias.to(wide)).to(dtype)

    def _dropped(self, z: Tensor, i: int) -> Tensor:
        if not self.dropout:
            return z
        mask = torch.from_numpy(mask_of(int(self.seeds[i]), self.T, self.C, self.dropout))
        return (z.to(F64) * mask).to(z.dtype)


def _values(ys: Any, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    values = {f"y{i}": y.detach() for i, y in enumerate(ys)}
    return values | {f"d{name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def philox4x32(counter: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Ten rounds of Salmon et al. 2011, figure 4 and table 2, on counters [n,4] and keys [n,2] of 32-bit words."""
    x, k = counter.astype(np.uint64), key.astype(np.uint64)
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        left, right = x[:, 0] * np.uint64(0xD2511F53), x[:, 2] * np.uint64(0xCD9E8D57)
        high = (right >> np.uint64(32)) ^ x[:, 1] ^ k[:, 0], (left >> np.uint64(32)) ^ x[:, 3] ^ k[:, 1]
        x = np.stack([high[0], right & low, high[1], left & low], 1)
        k = (k + np.array([0x9E3779B9, 0xBB67AE85], np.uint64)) & low
    return x


def mask_of(seed: int, rows: int, columns: int, p: float) -> np.ndarray:
    """The dropout mask as docs/lora.md defines it: element i has word i % 4 of counter i // 4, key the seed's bits."""
    count = rows * columns
    blocks = np.arange(-(-count // 4), dtype=np.uint64)
    counter = np.zeros((len(blocks), 4), np.uint64)
    counter[:, 0], counter[:, 1] = blocks & np.uint64(0xFFFFFFFF), blocks >> np.uint64(32)
    bits = seed % 2**64
    key = np.tile(np.array([bits % 2**32, bits // 2**32], np.uint64), (len(blocks), 1))
    words = philox4x32(counter, key).reshape(-1)[:count]
    return np.where(words < np.uint64(int(p * 2**32)), 0.0, 1 / (1 - p)).reshape(rows, columns)


CASES = {
    "no adapter": Problem(ranks=(0,), bias=True),
    "adapter": Problem(),
    "bias": Problem(T=12, bias=True),
    "residual": Problem(residual=True, bias=True),
    "dropout": Problem(dropout=0.25),
    "everything": Problem(30, 32, (24,), (4,), True, True, "layer", norm_bias=True, wide_adapters=True, dropout=0.1),
    "rank 1": Problem(T=17, ranks=(1,), bias=True),
    "rank 33": Problem(T=70, C=96, N=(40,), ranks=(33,), dropout=0.5),
    "largest rank": Problem(T=6, C=272, N=(20,), ranks=(256,), bias=True),
    "no rows": Problem(0, 16, (8, 4), (2, 3), bias=True, residual=True, norm="layer", norm_bias=True, dropout=0.5),
    "one token": Problem(T=1, dropout=0.5),
    "one column": Problem(T=5, C=1, N=(1,), ranks=(1,), bias=True),
    "odd sizes": Problem(37, 77, (45,), (5,), bias=True, residual=True, dropout=0.3),
    "deep": Problem(T=20, C=500, N=(33,), ranks=(7,), bias=True),
    "wide": Problem(T=150, C=40, N=(601,), ranks=(8,), dropout=0.05),
    "group": Problem(21, 48, (24, 8, 41), (4, 0, 9)),
    "group dropout": Problem(33, 36, (17, 8, 24), (3, 5, 0), bias=True, dropout=0.2, wide_adapters=True),
    "rms": Problem(norm="rms", wide_norm=True),
    "layer": Problem(norm="layer", norm_bias=True, T=20, C=40),
    "rms group": Problem(25, 64, (32, 16, 16), (8, 8, 8), norm="rms", weight_offset=1.0, wide_adapters=True),
    "layer group": Problem(19, 45, (30, 7, 11), (2, 0, 6), True, True, "layer", True, True, True, dropout=0.15),
    "no norm weight": Problem(norm="rms", norm_weight=False, bias=True),
    "norm bias alone": Problem(norm="layer", norm_weight=False, norm_bias=True, dropout=0.1),
    "float32 adapters": Problem(T=40, wide_adapters=True, bias=True, residual=True),
    "many rows": Problem(2100, 24, (16, 8), (3, 2), bias=True, norm="layer", norm_bias=True, dropout=0.1),
    "many plain rows": Problem(2100, 24, (16, 8), (3, 2), dropout=0.1),
}
