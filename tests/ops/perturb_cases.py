"""Lists of tensors that noise is added to, and what must come out, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longspan.ops.reference.perturb import es_update, noise, perturb

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


@dataclass(frozen=True)
class Problem:
    """One call: sizes of the tensors with their dtypes (the last one goes on), names and offsets; the members."""

    sizes: tuple[int, ...] = (5, 4099, 130)
    dtypes: tuple[torch.dtype, ...] = (F32,)
    ids: tuple[int, ...] = (3, 2**32 - 1, 0)
    offsets: tuple[int, ...] = (0, 0, 0)
    stream: int = 0
    seeds: tuple[int, ...] = (-81,)
    steps: tuple[int, ...] = (7,)
    coefficients: tuple[float, ...] = (0.37,)
    alpha: float = -0.01
    decay: tuple[float, ...] | None = None
    scale: float = 1e-3

    def dtype(self, i: int) -> torch.dtype:
        return self.dtypes[min(i, len(self.dtypes) - 1)]

    def tensors(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(sum(self.sizes))
        found = []
        for i, size in enumerate(self.sizes):
            x = torch.randn(size, generator=generator)
            x[::7] = -0.0  # which nothing but itself may change
            found.append(x.to(self.dtype(i)))
        return found

    def names(self) -> dict[str, Any]:
        return {"tensor_ids": list(self.ids), "offsets": list(self.offsets), "stream": self.stream}

    def noise(self, i: int, member: int, distribution: str) -> Tensor:
        return noise(
            self.sizes[i],
            self.seeds[member],
            self.steps[member],
            tensor_id=self.ids[i],
            stream=self.stream,
            offset=self.offsets[i],
            distribution=distribution,
            dtype=F32,
        )

    def perturbed(self, distribution: str) -> list[Tensor]:
        """What perturb_ gives with the first member, in float32 before it is rounded to the tensors' dtype."""
        scale = torch.tensor(self.scale)
        return [perturb(x, scale, self.noise(i, 0, distribution)) for i, x in enumerate(self.tensors())]

    def updated(self, distribution: str) -> list[Tensor]:
        """What es_update_ gives, in float32."""
        return [
            es_update(
                x,
                self.coefficients,
                [self.noise(i, member, distribution) for member in range(len(self.seeds))],
                self.alpha,
                self.decay[i] if self.decay else 0.0,
            )
            for i, x in enumerate(self.tensors())
        ]


_MANY = {
    "seeds": tuple(range(10, 21)),
    "steps": (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 2**32 - 1),
    "coefficients": (0.5, -1.5, 0.0, 2.0, 0.1, -0.3, 0.7, 1e-3, -2.0, 0.25, 1.0),
}
CASES = {
    "one member": Problem(),
    "many members": Problem(sizes=(300, 9), ids=(1, 2), offsets=(0, 0), decay=(0.1, 0.0), **_MANY),
    "no weight": Problem(coefficients=(0.0,), scale=0.0),
    "shards": Problem(offsets=(1, 126, 2**34 + 2**20 + 3), stream=2**32 - 1),
    "aligned shards": Problem(sizes=(64, 1000, 4), offsets=(4, 2**36, 124), stream=5),
    "halves": Problem(dtypes=(BF16,), decay=(0.1, 0.2, 0.0)),
    "mixed": Problem(dtypes=(BF16, F32, BF16)),
    "an empty tensor": Problem(sizes=(0, 40, 40), decay=(0.5, 0.25, 0.0)),
}
