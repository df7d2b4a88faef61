"""A product quantiser of queries and keys: codes, codewords, the loss that trains them (SPT, arXiv 2312.10365)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longspan.ops._define import define, op, require
from longspan.ops._dtypes import check_dtype
from longspan.ops._rows import readable

MAX_SUBSPACES = 64
"""The most pieces that a vector is cut into."""
MAX_CODEWORDS = 256
"""The most codewords of a piece: the number of one fits into 8 bits."""
MAX_WIDTH = 1 << 16  # one piece may be wider than what it holds


def code_bits(codewords: int) -> int:
    """Bits of a code: 4 for up to 16 codewords, else 8."""
    return 4 if codewords <= 16 else 8


def code_words(subspaces: int, codewords: int) -> int:
    """W, the int32 numbers that hold a vector's codes."""
    return -(-subspaces * code_bits(codewords) // 32)


@torch.no_grad()
def pq_encode(z: Tensor, codebook: Tensor, *, power: int = 2) -> Tensor:
    """Numbers of the nearest codewords of each vector, packed: int32 [B,H,T,W]; no gradient.

        code[m] = argmin_e sum_j |z[m d + j] - codebook[g(h),m,e,j]|^power,  g(h) = h // (H // G), ties to the lowest e

    z: [B,H,T,D], float32, bfloat16, float64 on the CPU, float16 on CUDA, any strides with D contiguous. codebook:
    [G,M,E,d], contiguous, float32 (float64 for float64), G a divisor of H, M up to 64 pieces of d components that just
    hold D (missing ones count 0), E up to 256 codewords. power: 1 is SPT's distance, 2 that of k-means. A code has
    4 bits for E up to 16, else 8, the first in the lowest. The same codes on every device, bit for bit.

    Raises ValueError naming what does not fit, and MissingBackendError when no kernel serves the device.
    Source: SPT (arXiv 2312.10365, prototype); product quantisation: Jégou et al. 2011.
    """
    _check("pq_encode", z, codebook, power)
    require("pq_encode", z)
    codes: Tensor = op("pq_encode")(z.detach(), codebook.detach(), power)
    return codes


def unpack_codes(codes: Tensor, subspaces: int, codewords: int) -> Tensor:
    """Codes as numbers: int32 [..., W] -> int64 [..., M]. Raises ValueError for a code that is no codeword's number."""
    check_sizes("unpack_codes", subspaces, codewords)
    bits = code_bits(codewords)
    if codes.dtype != torch.int32 or codes.dim() < 1 or codes.shape[-1] != code_words(subspaces, codewords):
        raise ValueError(
            f"unpack_codes: codes are {codes.dtype} {tuple(codes.shape)}; {subspaces} subspaces of {codewords} "
            f"codewords take int32 [..., {code_words(subspaces, codewords)}]"
        )
    places = torch.arange(subspaces, device=codes.device) * bits
    words = codes.long().index_select(-1, places // 32) & 0xFFFFFFFF
    numbers = (words >> places % 32) & (2**bits - 1)
    if codewords < 2**bits and readable(numbers) and numbers.numel() and int(numbers.max()) >= codewords:
        raise ValueError(f"unpack_codes: codes has code {int(numbers.max())}; there are {codewords} codewords")
    return numbers


def check_sizes(name: str, subspaces: int, codewords: int) -> None:
    """Raises ValueError unless these are numbers of pieces and of codewords."""
    for label, value, most in (("subspaces", subspaces, MAX_SUBSPACES), ("codewords", codewords, MAX_CODEWORDS)):
        if not 1 <= value <= most:
            raise ValueError(f"{name}: {label} is {value}; allowed: 1 to {most}")


def pq_decode(codes: Tensor, codebook: Tensor) -> Tensor:
    """The codewords that codes int32 [B,H,T,W] stand for: [B,H,T,M d] in the codebook's dtype, differentiable in it.

    Raises ValueError for what does not fit.
    """
    if codebook.dim() != 4 or not codebook.dtype.is_floating_point or codebook.device != codes.device:
        raise ValueError(
            f"pq_decode: codebook is {codebook.dtype} {tuple(codebook.shape)} on {codebook.device}; it must be "
            f"floating point [G,M,E,d] on {codes.device}"
        )
    groups, subspaces, codewords, _ = codebook.shape
    if codes.dim() != 4 or groups < 1 or codes.shape[1] % groups:
        raise ValueError(f"pq_decode: codes have shape {tuple(codes.shape)}; they must be [B,H,T,W], {groups} | H")
    numbers = unpack_codes(codes, subspaces, codewords)
    group = torch.arange(codes.shape[1], device=codes.device) // max(1, codes.shape[1] // groups)
    piece = torch.arange(subspaces, device=codes.device)
    found = codebook[group[None, :, None, None], piece, numbers]
    return found.flatten(3)


def pq_loss(
    z: Tensor, codebook: Tensor, codes: Tensor | None = None, *, power: int = 2, eps: float = 1e-5, commit: bool = False
) -> Tensor:
    """How far soft and hard codewords are from each other and from z: a number, in the codebook's dtype.

        a_e = (1 / max(distance_e, eps)) / sum,  soft = sum_e a_e codeword_e,  hard = codeword[code]
        loss = mean((soft - hard)^2) + mean((z - hard)^2)

    z, codebook, power: as `pq_encode`; codes: of z, made here unless given. Differentiable, once, in the codebook and,
    with ``commit``, in z, which is a constant otherwise: the loss then trains codewords alone and bends no query or
    key. Saved for backward: the gradients themselves, [G,M,E,d] and, with commit, one like z. Sums have a fixed order.

    Raises ValueError naming what does not fit, and MissingBackendError when no kernel serves the device.
    Source: SPT (arXiv 2312.10365, prototype), which does not detach z.
    """
    _check("pq_loss", z, codebook, power)
    if not 0 < eps <= torch.finfo(codebook.dtype).max:
        raise ValueError(f"pq_loss: eps is {eps}; it must be positive and finite in {codebook.dtype}")
    codes = pq_encode(z, codebook, power=power) if codes is None else codes
    _check_codes("pq_loss", z, codes, codebook.shape[1], codebook.shape[2])
    require("pq_loss", z)
    loss: Tensor = op("pq_loss")(z if commit else z.detach(), codebook, codes, power, eps, commit and z.requires_grad)[
        0
    ]
    return loss


@torch.no_grad()
def pq_stats(
    z: Tensor, codes: Tensor, *, groups: int, subspaces: int, codewords: int, width: int
) -> tuple[Tensor, Tensor]:
    """Per codeword the sum of the vectors with its code and their number: float32 (float64) and int32 [G,M,E(,d)].

    What a step of k-means and the re-seeding of unused codewords need. z: [B,H,T,D] as `pq_encode`; codes: int32
    [B,H,T,W]. Sums have a fixed order. Raises ValueError naming what does not fit.
    """
    if z.dim() != 4:
        raise ValueError(f"pq_stats: z has shape {tuple(z.shape)}; it must be [B,H,T,D]")
    check_dtype("pq_stats", "z", z, half=True)
    for name, value, most in (
        ("groups", groups, z.shape[1]),
        ("subspaces", subspaces, MAX_SUBSPACES),
        ("codewords", codewords, MAX_CODEWORDS),
        ("width", width, MAX_WIDTH),
    ):
        if not 1 <= value <= most:
            raise ValueError(f"pq_stats: {name} is {value}; allowed: 1 to {most}")
    _check_pieces("pq_stats", z, groups, subspaces, width)
    _check_codes("pq_stats", z, codes, subspaces, codewords)
    require("pq_stats", z)
    sums, counts = op("pq_stats")(z.detach(), codes, groups, subspaces, codewords, width)
    return sums, counts


def check_codebook(name: str, z: Tensor, codebook: Tensor) -> None:
    """Raises ValueError unless the codebook fits vectors z [B,H,T,D]."""
    wanted = torch.float64 if z.dtype == torch.float64 else torch.float32
    if codebook.dim() != 4 or codebook.dtype != wanted or codebook.device != z.device:
        raise ValueError(
            f"{name}: the codebook is {codebook.dtype} {tuple(codebook.shape)} on {codebook.device}; for {z.dtype} on "
            f"{z.device} it must be {wanted} [G,M,E,d] there"
        )
    groups, subspaces, codewords, width = codebook.shape
    if not (1 <= subspaces <= MAX_SUBSPACES and 1 <= codewords <= MAX_CODEWORDS and groups >= 1 and width >= 1):
        raise ValueError(
            f"{name}: the codebook has {subspaces} subspaces of {codewords} codewords; allowed: 1 to {MAX_SUBSPACES} "
            f"of 1 to {MAX_CODEWORDS}"
        )
    if not codebook.is_contiguous():
        raise ValueError(f"{name}: the codebook must be contiguous; call codebook.contiguous()")
    _check_pieces(name, z, groups, subspaces, width)


def _check_pieces(name: str, z: Tensor, groups: int, subspaces: int, width: int) -> None:
    heads, dim = z.shape[1], z.shape[3]
    if heads % groups or not (subspaces - 1) * width < dim <= subspaces * width:
        raise ValueError(
            f"{name}: a codebook of {groups} groups and {subspaces} x {width} components does not fit {heads} heads of "
            f"{dim}; groups must divide the heads, and M d just hold D"
        )


def _check(name: str, z: Tensor, codebook: Tensor, power: int) -> None:
    if z.dim() != 4:
        raise ValueError(f"{name}: z has shape {tuple(z.shape)}; it must be [B,H,T,D]")
    check_dtype(name, "z", z, half=True)
    if z.shape[-1] > 1 and z.stride(-1) != 1:
        raise ValueError(f"{name}: the last dimension of z must be contiguous; call z.contiguous()")
    check_codebook(name, z, codebook)
    if power not in (1, 2):
        raise ValueError(f"{name}: power is {power}; allowed: 1, 2")


def _check_codes(name: str, z: Tensor, codes: Tensor, subspaces: int, codewords: int) -> None:
    wanted = (*z.shape[:3], code_words(subspaces, codewords))
    if codes.dtype != torch.int32 or codes.shape != wanted or codes.device != z.device or not codes.is_contiguous():
        raise ValueError(
            f"{name}: codes are {codes.dtype} {tuple(codes.shape)} on {codes.device}; they must be contiguous int32 "
            f"{wanted} on {z.device}"
        )


def _encode_fake(z: Tensor, codebook: Tensor, power: int) -> Tensor:
    words = code_words(codebook.shape[1], codebook.shape[2])
    return z.new_empty((*z.shape[:3], words), dtype=torch.int32)


def _loss_fake(
    z: Tensor, codebook: Tensor, codes: Tensor, power: int, eps: float, need_dz: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dz = z.new_empty(z.shape) if need_dz else z.new_empty((0,))
    return codebook.new_empty(()), codebook.new_empty(codebook.shape), dz


def _stats_fake(
    z: Tensor, codes: Tensor, groups: int, subspaces: int, codewords: int, width: int
) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
    shape = (groups, subspaces, codewords)
    return z.new_empty((*shape, width), dtype=dtype), z.new_empty(shape, dtype=torch.int32)


define("pq_encode", "(Tensor z, Tensor codebook, int power) -> Tensor", _encode_fake)
define(
    "pq_loss",
    "(Tensor z, Tensor codebook, Tensor codes, int power, float eps, bool need_dz) "
    "-> (Tensor loss, Tensor dcodebook, Tensor dz)",
    _loss_fake,
)
define(
    "pq_stats",
    "(Tensor z, Tensor codes, int groups, int subspaces, int codewords, int width) -> (Tensor sums, Tensor counts)",
    _stats_fake,
)


def _setup_constant(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.mark_non_differentiable(*(output if isinstance(output, tuple) else (output,)))
    ctx.count = len(inputs)


def _constant(ctx: Any, *gradients: Tensor | None) -> tuple[None, ...]:
    return (None,) * int(ctx.count)  # codes only choose


def _setup_loss(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, dcodebook, dz = output
    ctx.mark_non_differentiable(dcodebook, dz)
    ctx.save_for_backward(dcodebook, dz)


def _backward_loss(ctx: Any, dloss: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    dcodebook, dz = ctx.saved_tensors
    if dloss is None:
        return (None,) * 6
    needs_z, needs_codebook = ctx.needs_input_grad[:2]
    return (
        (dz * dloss.to(dz.dtype)) if needs_z else None,
        dcodebook * dloss if needs_codebook else None,
        None,
        None,
        None,
        None,
    )


torch.library.register_autograd("longspan::pq_encode", _constant, setup_context=_setup_constant)
torch.library.register_autograd("longspan::pq_stats", _constant, setup_context=_setup_constant)
torch.library.register_autograd("longspan::pq_loss", _backward_loss, setup_context=_setup_loss)
