"""Counter-based noise from its definition: float64 is the oracle, float32 is every step of the kernels, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from longspan.ops.reference.philox import WORD, philox

_RADIUS = (2.0, 0.999985695, 0.667401254, 0.485610157, 0.539225459, -0.407077581, 2.51533866, -3.39162302, 2.88221526)
_COS = (1.0, -0.308425128, 0.0158543233, -0.000325936504, 3.52876168e-06)
_SIN = (0.785398185, -0.0807454363, 0.00249000103, -3.5950452e-05)


def noise(
    size: int,
    seed: int,
    step: int = 0,
    *,
    tensor_id: int = 0,
    stream: int = 0,
    offset: int = 0,
    distribution: str = "gaussian",
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """See `longspan.ops.perturb_noise`; in float64 from the definition, in float32 by the kernels' steps."""
    each = 4 if distribution == "gaussian" else 128
    first, end = offset // each, -(-(offset + size) // each)
    q = torch.arange(first, end, dtype=torch.int64)
    key = (seed ^ (step & WORD) ^ (tensor_id << 32)) & (2**64 - 1)
    words = philox((q & WORD, q >> 32, torch.full_like(q, stream), torch.zeros_like(q)), key)
    if distribution == "gaussian":
        pair = _pair if dtype == torch.float64 else _rounded_pair
        z = torch.stack((*pair(words[0], words[1]), *pair(words[2], words[3])), 1)
    else:
        bits = torch.stack(words, 1)[:, :, None] >> torch.arange(32) & 1
        z = (1 - 2 * bits).to(dtype)
    return z.flatten()[offset - first * each :][:size]


def perturb(source: Tensor, scale: float | Tensor, z: Tensor) -> Tensor:
    """source + scale z, the source itself where scale is 0; z [n]. In float32 by the kernels' steps."""
    return es_update(source, torch.as_tensor(scale, dtype=z.dtype).reshape(1), [z])


def es_update(
    target: Tensor, coefficients: Sequence[float] | Tensor, z: Sequence[Tensor], alpha: float = 1.0, decay: float = 0.0
) -> Tensor:
    """(1 - decay) target + sum of alpha coefficients[n] z[n] in order; members of weight 0 are left out."""
    dtype = z[0].dtype
    weights = torch.tensor(alpha, dtype=dtype) * torch.as_tensor(coefficients, dtype=dtype)
    total = torch.full(target.shape, -0.0, dtype=dtype)
    for weight, each in zip(weights, z, strict=True):
        if weight != 0:
            total = total + weight * each.view(target.shape)
    return (1 - torch.tensor(decay, dtype=dtype)) * target.to(dtype) + total


def _pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Box and Muller 1958: u = (word + 1/2) / 2^32."""
    radius = (-2 * ((x.double() + 0.5) * 2.0**-32).log()).sqrt()
    angle = 2 * math.pi * ((y.double() + 0.5) * 2.0**-32)
    return radius * angle.cos(), radius * angle.sin()


def _rounded_pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The steps of csrc/kernels/perturb/noise.h in float32."""
    high = x >> 31 != 0
    h = torch.where(high, WORD - x, x).float() + 0.5
    bits = h.view(torch.int32)
    mantissa = ((bits & 0x007FFFFF) | 0x3F000000).view(torch.float32)
    a = torch.where(high, h * 2.0**-32, 1 - mantissa)
    k = torch.where(high, 0, 158 - (bits >> 23)).float()
    square = k * _f32(1.38629436) + a * _polynomial(a, _RADIUS)
    radius = square.double().sqrt().float()  # rounded once in all; torch's own float32 root is not
    w = (y + 0x20000000) & WORD
    t = (((w & 0x3FFFFFFF) - 0x20000000).float() + 0.5) * 2.0**-29
    c, s = _polynomial(t * t, _COS), t * _polynomial(t * t, _SIN)
    odd = w >> 30 & 1 != 0
    cos, sin = torch.where(odd, s, c), torch.where(odd, c, s)
    cos = torch.where((w + 0x40000000) >> 31 & 1 != 0, -cos, cos)
    sin = torch.where(w >> 31 != 0, -sin, sin)
    return radius * cos, radius * sin


def _f32(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)


def _polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    total = _f32(coefficients[-1]).expand_as(x)
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + _f32(coefficient)
    return total
