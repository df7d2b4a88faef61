"""The attention kernels without torch ops: every instruction set that this machine runs, NumPy, DLPack, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from longspan import kernels
from longspan.ops import AttentionPattern, TokenLayout
from tests.laws import BACKWARD, FORWARD, assert_error_bound
from tests.ops.attention_cases import inputs, oracle

INSTRUCTION_SETS = ("baseline", "x86-64-v3", "x86-64-v4")
LAYOUT = TokenLayout.packed(torch.tensor([0, 3, 200, 333]))
PATTERN = AttentionPattern.s2(group_size=64, sinks=2)


def spec(**kwargs: object) -> object:
    planes = LAYOUT.queries.numpy()
    return kernels.AttentionSpec("s2", group_size=64, sinks=2, query_layout=planes, key_layout=planes, **kwargs)


def runnable() -> list[str]:
    """The instruction sets of the build that this machine runs; the summary names the others."""
    import os

    found, before = [], os.environ.get("LONGSPAN_ISA")
    for name in INSTRUCTION_SETS:
        os.environ["LONGSPAN_ISA"] = name
        try:
            kernels.instruction_set()
            found.append(name)
        except ValueError:
            continue
        finally:
            os.environ.pop("LONGSPAN_ISA")
            if before is not None:
                os.environ["LONGSPAN_ISA"] = before
    return found


@pytest.mark.parametrize("isa", runnable())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_instruction_set_keeps_the_error_bound(
    isa: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGSPAN_ISA", isa)
    assert kernels.instruction_set() == isa
    tensors = inputs(1, 5, 1, 333, 72, dtype=dtype)
    q, k, v = (x.numpy() for x in tensors)
    out, lse = kernels.attention_fwd(q, k, v, spec(softcap=4.0), threads=2)
    weight = np.random.default_rng(0).standard_normal(out.shape).astype(out.dtype)
    grads = kernels.attention_bwd(weight, q, k, v, out, lse, spec(softcap=4.0), threads=2)

    def reference(kind: torch.dtype) -> list[torch.Tensor]:
        x = [t.detach().to(kind).requires_grad_() for t in tensors]
        from longspan.ops.reference.attention import attention

        o, logsumexp = attention(*x, PATTERN, layout=LAYOUT, softcap=4.0)
        (o * torch.from_numpy(weight).to(kind)).sum().backward()
        return [o.detach(), logsumexp.detach(), *(t.grad for t in x)]

    names = ("out", "lse", "dq", "dk", "dv")
    for name, ours, rounded, exact in zip(
        names, (out, lse, *grads), reference(torch.float32), reference(torch.float64), strict=True
    ):
        factor = FORWARD if name in ("out", "lse") else BACKWARD
        assert_error_bound(f"{isa} {name}", torch.from_numpy(ours), rounded, exact, factor)


def test_unknown_instruction_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSPAN_ISA", "avx9")
    with pytest.raises(ValueError, match=r"LONGSPAN_ISA is 'avx9'; this machine runs: .*baseline"):
        kernels.attention_fwd(*(x.numpy() for x in inputs(1, 1, 1, 4, 8)))


def test_thread_count_changes_no_bit() -> None:
    q, k, v = (x.numpy() for x in inputs(2, 6, 2, 700, 40))
    one = kernels.attention_fwd(q, k, v, threads=1)
    many = kernels.attention_fwd(q, k, v, threads=7)
    for a, b in zip(one, many, strict=True):
        assert np.array_equal(a, b)
    for a, b in zip(
        kernels.attention_bwd(q, q, k, v, *one, threads=1),
        kernels.attention_bwd(q, q, k, v, *one, threads=7),
        strict=True,
    ):
        assert np.array_equal(a, b)


def test_same_bits_as_the_torch_op() -> None:
    from longspan.ops import attention

    tensors = inputs(1, 4, 2, 333, 64)
    out, lse = kernels.attention_fwd(*(x.numpy() for x in tensors), spec(), threads=2)
    ours, ours_lse = attention(*tensors, PATTERN, layout=LAYOUT, return_lse=True)
    assert torch.equal(torch.from_numpy(out), ours)
    assert torch.equal(torch.from_numpy(lse), ours_lse)


def test_dlpack_equals_buffer_and_bfloat16_comes_as_bits() -> None:
    tensors = inputs(1, 4, 2, 65, 32)
    a, _ = kernels.attention_fwd(*tensors)
    b, _ = kernels.attention_fwd(*(x.numpy() for x in tensors))
    assert np.array_equal(a, b)
    half = tuple(x.bfloat16() for x in tensors)
    bits, lse = kernels.attention_fwd(*half)
    assert bits.dtype == np.uint16
    assert lse.dtype == np.float32
    exact = oracle(half, torch.float64, AttentionPattern.full())["out"]
    rounded = oracle(half, torch.bfloat16, AttentionPattern.full())["out"]
    assert_error_bound("bfloat16", torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16), rounded, exact, FORWARD)


def test_visible_pairs_follow_the_formula() -> None:
    # LongLoRA, appendix: n groups of G keys; unshifted n G (G+1) / 2, shifted (n-1) G (G+1) / 2 + (G/2) (G/2 + 1).
    two_heads = kernels.attention_visible_pairs(kernels.AttentionSpec("s2", group_size=8), 1, 2, 32, 32)
    assert two_heads == 144 + 128
    assert kernels.attention_visible_pairs(kernels.AttentionSpec(), 2, 3, 10, 10) == 2 * 3 * 55


BAD = {
    "6 query heads are not a multiple of 4 key/value heads": ((1, 6, 8, 16), (1, 4, 8, 16), {}),
    "head dimension is 257; allowed: 1 to 256": ((1, 2, 8, 257), (1, 2, 8, 257), {}),
    "8 queries and 9 keys need both query_layout and key_layout": ((1, 2, 8, 16), (1, 2, 9, 16), {}),
    "q and k differ in batch or head dimension": ((1, 2, 8, 16), (2, 2, 8, 16), {}),
    "q has 3 dimensions; it needs 4": ((2, 8, 16), (1, 2, 8, 16), {}),
    "group_size is 3; it must be even and at least 2": (
        (1, 2, 8, 16),
        (1, 2, 8, 16),
        {"pattern": "s2", "group_size": 3},
    ),
    "window is 0; it must be at least 1": ((1, 2, 8, 16), (1, 2, 8, 16), {"pattern": "window"}),
    "pattern is 'dense'; allowed: full, s2, window, tiles, selected": (
        (1, 2, 8, 16),
        (1, 2, 8, 16),
        {"pattern": "dense"},
    ),
    "threads is -1; it must be 0 (all cores), or 1 to 1024": ((1, 2, 8, 16), (1, 2, 8, 16), {"threads": -1}),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message: str) -> None:
    q_shape, k_shape, options = BAD[message]
    options = dict(options)
    threads = options.pop("threads", 0)
    q, k = np.zeros(q_shape, np.float32), np.zeros(k_shape, np.float32)
    with pytest.raises(ValueError) as error:
        kernels.attention_fwd(q, k, k, kernels.AttentionSpec(**options), threads=threads)
    assert str(error.value) == message


def test_wrong_array_types() -> None:
    x = np.zeros((1, 2, 8, 16), np.float32)
    with pytest.raises(ValueError, match="q is int32; allowed: float32, float64, bfloat16"):
        kernels.attention_fwd(x.astype(np.int32), x, x)
    with pytest.raises(ValueError, match="q is float64, k is float32, v is float32; they must have one dtype"):
        kernels.attention_fwd(x.astype(np.float64), x, x)
    with pytest.raises(TypeError, match="q is a str; give an array that speaks DLPack or the buffer protocol"):
        kernels.attention_fwd("x", x, x)
    with pytest.raises(ValueError, match="k: the last dimension must be contiguous, its stride is 8"):
        kernels.attention_fwd(x, np.zeros((1, 2, 16, 8), np.float32).transpose(0, 1, 3, 2), x)
