"""Optimiser steps by the CUDA kernels in the CPU emulation: the bits of the CPU and of the definition, in every
schedule; as PTX.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from longspan import kernels
from longspan.ops.reference.philox import philox
from tests.cuda import arrays, simt
from tests.cuda.replay import replay

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
LETTERS = {F32: "f", BF16: "b", F16: "h"}
KINDS = ("all", "threshold", "bits", "rows", "columns", "none")
MODES = ("grad", "update", "freeze")
SCHEDULES: tuple[tuple[simt.Build, int], ...] = (("plain", 0), ("plain", 1), ("plain", 2), ("plain", 3), ("hooks", 1))
SOURCES = ["update/update.cu"]
CHUNK = 8192  # elements a block
Step = Literal["adamw", "sgd", "plain sgd"]


@dataclass(frozen=True)
class Parameter:
    """One tensor: elements, dtypes of weight, gradient and copy, its mask; `skip` elements lie before each array."""

    size: int
    kind: str = "all"
    param: torch.dtype = F32
    grad: torch.dtype = F32
    copy: torch.dtype | None = None
    columns: int = 1
    factor: float = 1.0
    skip: int = 0
    special: bool = False


@dataclass(frozen=True)
class Problem:
    """A call. Gradients are few magnitudes, so that thresholds have equals; those with a threshold are one group."""

    parameters: list[Parameter]
    step: Step = "adamw"
    mode: str = "grad"
    zero_grad: bool = False
    stochastic: bool = False
    seed: int = 0x123456789ABCDEF
    share: float = 0.4
    state: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        random = torch.Generator().manual_seed(len(self.parameters))
        for i, x in enumerate(self.parameters):
            made = {name: torch.randn(x.size, generator=random) for name in "pgmv"}
            made["g"] = (made["g"] * 4).round() / 16
            made["v"] = made["v"].square() * 0.1
            if x.special and x.size:
                for name in "gm":
                    made[name][:8] = torch.tensor([np.inf, -np.inf, np.nan, 1e-41, -3e38, 0.0, -0.0, 1e-20])
                made["v"][:8] = torch.tensor([0.0, 1e-42, 3e38, 0.0, 1.0, 0.0, 0.0, 0.0])
                made["m"][12:] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(F32)  # every bit of its fraction
            made["p"], made["g"] = made["p"].to(x.param), made["g"].to(x.grad)
            if self.step != "adamw":
                del made["v"]
            if self.step == "plain sgd":
                del made["m"]
            if x.copy:
                made["c"] = torch.full((x.size,), 7.0, dtype=x.copy)
            if x.kind in ("bits", "rows", "columns"):
                length = {"bits": -(-x.size // 8), "rows": x.size // x.columns, "columns": x.columns}[x.kind]
                kept = torch.rand(length, 8, generator=random) < 0.3
                kept[: length // 2] &= torch.rand(length // 2, 1, generator=random) < 0.5  # whole runs that are masked
                weights = 2 ** torch.arange(8) if x.kind == "bits" else torch.tensor([1, 0, 0, 0, 0, 0, 0, 0])
                made["mask"] = (kept * weights).sum(1).to(torch.uint8)
            self.state.update({f"{name}{i}": values for name, values in made.items()})

    def numbers(self) -> list[int]:
        """Of the first elements of those with a threshold, from a number that other ranks would have before."""
        found, total = [], 0
        for x in self.parameters:
            found.append(total if x.kind == "threshold" else 0)
            total += x.size if x.kind == "threshold" else 0
        return found

    def threshold(self) -> tuple[int, int]:
        """Bits and cut of group 1, which falls on one of its equal magnitudes."""
        members = [self.state[f"g{i}"].float().abs() for i, x in enumerate(self.parameters) if x.kind == "threshold"]
        if not sum(len(x) for x in members):
            return 0, 0
        values = torch.cat(members)
        limit = values.nan_to_num(9e9).sort(descending=True).values[int(self.share * len(values))]
        equal = (values == limit).nonzero().flatten()
        return int(limit.view(torch.int32)), int(equal[len(equal) // 2])

    def scalars(self) -> np.ndarray:
        if self.step != "adamw":
            return np.array([0.1, 0.9, 0.01], np.float32)
        return np.array([0.999, 0.9, 0.1, 0.95, 0.05, 0.02, 0.31, 1e-6], np.float32)

    def kept(self, i: int) -> np.ndarray:
        """The mask of a parameter by its definition."""
        x, size = self.parameters[i], self.parameters[i].size
        at = np.arange(size)
        if x.kind in ("all", "none"):
            return np.full(size, x.kind == "all")
        if x.kind == "threshold":
            (bits, cut), g = self.threshold(), self.state[f"g{i}"].float().view(torch.int32).numpy() & 0x7FFFFFFF
            return (g > bits) | ((g == bits) & (self.numbers()[i] + at < cut))
        mask = self.state[f"mask{i}"].numpy()
        if x.kind == "bits":
            return (mask[at // 8] >> (at % 8) & 1).astype(bool)
        return mask[at // x.columns if x.kind == "rows" else at % x.columns] != 0

    def expected(self, real: type = np.float32) -> dict[str, Tensor]:
        """All arrays after the step by its definition, each operation rounded to `real`."""
        s = self.scalars().astype(real)
        found = {}
        for i, x in enumerate(self.parameters):
            old = {name: self.state.get(f"{name}{i}") for name in "pgmvc"}
            new = {name: value for name, value in old.items() if value is not None}
            if x.size and not np.isnan(x.factor) and not (x.kind == "none" and self.mode == "freeze"):
                p, g = (old[name].float().numpy().astype(real) for name in "pg")
                m, v = (None if old[n] is None else old[n].numpy().astype(real) for n in "mv")
                kept, g = self.kept(i), g * real(x.factor)
                with np.errstate(all="ignore"):
                    if self.mode == "grad":
                        g = np.where(kept, g, real(0))
                    moves = kept | (self.mode == "grad")
                    if self.step == "adamw":
                        m1, v1 = s[1] * m + s[2] * g, s[3] * v + s[4] * (g * g)
                        decayed = p * s[0]
                        p1 = np.where(moves, decayed - s[5] * (m1 / (np.sqrt(v1) / s[6] + s[7])), decayed)
                    else:
                        whole = g + s[2] * p
                        m1, v1 = whole if m is None else s[1] * m + whole, v
                        p1 = np.where(moves, p - s[0] * m1, p)
                    if self.mode == "freeze":
                        p1 = np.where(kept, p1, p)
                        m1 = m1 if m is None else np.where(kept, m1, m)
                        v1 = v1 if v is None else np.where(kept, v1, v)
                    stepped = torch.from_numpy(p1)
                    new["p"] = (
                        self.stochastically(i, stepped) if self.stochastic and x.param == BF16 else stepped.to(x.param)
                    )
                    new |= {n: torch.from_numpy(y) for n, y in (("m", m1), ("v", v1)) if old[n] is not None}
                    if x.copy:
                        new["c"] = stepped.to(x.copy)
            if self.zero_grad:
                new["g"] = torch.zeros_like(new["g"])
            found |= {f"{name}{i}": value for name, value in new.items()}
        return found

    def stochastically(self, i: int, x: Tensor) -> Tensor:
        """Rounded to bfloat16 by two bytes of the random words of (element / 8, tensor)."""
        at = torch.arange(len(x))
        zero = torch.zeros_like(at)
        words = torch.stack(philox([at // 8, zero, zero + i, zero], self.seed))
        part = words[at % 8 // 2, at] >> (at % 2 * 16) & 0xFFFF
        bits = (x.float().view(torch.int32).long() & 0xFFFFFFFF) + part
        up = ((bits >> 16) & 0xFFFF).to(torch.int32).to(torch.int16).view(BF16)
        return torch.where(x.isfinite(), up, x.to(BF16))

    def arguments(self) -> dict[str, Any]:
        """What the entries take."""
        found: dict[str, Any] = {}
        for name, value in self.state.items():
            x = self.parameters[int(name.lstrip("pgmvcask"))]
            before = torch.full((0 if name[:4] == "mask" else x.skip,), 3.0).to(value.dtype)
            found[name] = arrays.bits(torch.cat([before, value]))
        each = self.parameters
        bits, cut = self.threshold()
        found |= {
            f"{n}_dtypes": "".join(LETTERS[d] for d in ds)
            for n, ds in (
                ("p", [x.param for x in each]),
                ("g", [x.grad for x in each]),
                ("c", [x.copy or BF16 for x in each]),
            )
        }
        return found | {
            "skip": [x.skip for x in each],
            "kinds": [KINDS.index(x.kind) for x in each],
            "columns": [x.columns for x in each],
            "groups": [int(x.kind == "threshold") for x in each],
            "numbers": self.numbers(),
            "bits": np.array([0, bits], np.int32),
            "cut": np.array([0, cut]),
            "factors": np.array([x.factor for x in each], np.float32),
            "scalars": self.scalars(),
            "mode": MODES.index(self.mode),
            "zero_grad": self.zero_grad,
            "stochastic": self.stochastic,
            "seed": self.seed,
        }

    @property
    def entry(self) -> str:
        return "masked_adamw" if self.step == "adamw" else "masked_sgd"

    def on_cpu(self) -> dict[str, Tensor]:
        """All arrays after the step of the CPU's kernel."""
        state, each = {name: value.clone() for name, value in self.state.items()}, self.parameters
        of = {name: [state.get(f"{name}{i}") for i in range(len(each))] for name in ("p", "g", "m", "v", "c", "mask")}
        for i, x in enumerate(each):  # kernels take row masks of matrices
            if x.kind in ("rows", "columns"):
                for name in ("p", "g", "m", "v", "c"):
                    of[name][i] = None if of[name][i] is None else of[name][i].view(-1, x.columns)
        bits, cut = self.threshold()
        moments = [of["m"], of["v"]] if self.step == "adamw" else [of["m"]]
        getattr(kernels, f"{self.entry}_")(
            of["p"],
            of["g"],
            *moments,
            torch.from_numpy(self.scalars()),
            torch.tensor([x.factor for x in each]),
            copies=of["c"],
            kinds=[x.kind for x in each],
            masks=of["mask"],
            groups=[int(x.kind == "threshold") for x in each],
            numbers=self.numbers(),
            bits=torch.tensor([0, bits], dtype=torch.int32),
            cut=torch.tensor([0, cut]),
            mode=self.mode,
            zero_grad=self.zero_grad,
            stochastic_seed=self.seed if self.stochastic else None,
        )
        return {name: value for name, value in state.items() if name[:4] != "mask"}


def assert_same(problem: Problem, found: dict[str, Tensor], expected: dict[str, Tensor], label: str) -> None:
    """Bit for bit, but for the bits of not-a-numbers."""
    for name, wanted in expected.items():
        ours = found[name]
        assert ours.dtype == wanted.dtype, f"{label}: {name}"
        word = torch.int32 if wanted.dtype == F32 else torch.int16
        same = (ours.view(word) == wanted.view(word)) | (ours.isnan() & wanted.isnan())
        x = problem.parameters[int(name[1:])]
        wrong = (~same).nonzero().flatten()
        assert not len(wrong), f"{label}: {name} ({x}) at {wrong[:5]}: {ours[wrong[:5]]} instead of {wanted[wrong[:5]]}"


def tensors_of(problem: Problem, run: Any) -> dict[str, Tensor]:
    """The results without what lies before them, which must be as it was."""
    found = {}
    for name, array in run.outputs.items():
        x = problem.parameters[int(name[1:])]
        whole = arrays.tensor(array, problem.state[name].dtype)
        assert bool((whole[: x.skip] == 3.0).all()), f"{name} was written before its start"
        found[name] = whole[x.skip :]
    return found


ON_BOTH = [  # what the CPU takes as well; the first one has a number but no place in the table
    Parameter(0),
    Parameter(CHUNK + 2053, factor=0.37),
    Parameter(1, "threshold"),
    Parameter(3001, "threshold", copy=BF16, factor=1.7),
    Parameter(2 * CHUNK + 40, "threshold", grad=BF16),
    Parameter(1023, "bits", param=BF16, grad=BF16),
    Parameter(3000, "bits", grad=BF16, copy=BF16, skip=1),
    Parameter(40 * 37, "rows", columns=37, copy=BF16),
    Parameter(9 * 200, "rows", columns=200),
    Parameter(31 * 21, "columns", columns=21, grad=BF16, factor=0.5),
    Parameter(500 * 3, "columns", param=BF16, columns=3, skip=3),
    Parameter(333, "none", copy=BF16),
    Parameter(444, factor=float("nan"), copy=BF16),
    Parameter(100, "bits", special=True, param=BF16),
    Parameter(100, special=True, copy=BF16),
]
ALONE = [
    Parameter(700, "threshold", grad=F16, copy=F16),
    Parameter(801, "bits", param=BF16, grad=F16, skip=8),
    Parameter(64, grad=F16, copy=F16, special=True),
]


def problem_of(step: Step, mode: str) -> Problem:
    return Problem(ON_BOTH, step, mode, zero_grad=mode != "grad", stochastic=mode != "update")


@pytest.mark.parametrize("halves", [False, True], ids=["as the CPU", "float16"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("step", ["adamw", "sgd", "plain sgd"])
def test_bits_are_those_of_the_definition_in_every_schedule(step: Step, mode: str, halves: bool) -> None:
    problem = problem_of(step, mode)
    problem = replace(problem, parameters=ALONE, state={}) if halves else problem
    expected = problem.expected()
    for build, seed in SCHEDULES:
        run = simt.run(problem.entry, problem.arguments(), build=build, seed=seed)
        assert not run.reports, run.text()
        assert_same(problem, tensors_of(problem, run), expected, f"{build}, seed {seed}")
    if not halves:  # plain arrays on the CPU have elements
        problem = replace(problem, parameters=[Parameter(1), *ON_BOTH[1:]], state={})
        assert_same(problem, problem.on_cpu(), problem.expected(), "the CPU")


@pytest.mark.parametrize("step", ["adamw", "sgd"])
def test_errors_are_those_of_float32(step: Step) -> None:
    problem = Problem([Parameter(3000), Parameter(3000, "threshold", factor=0.5)], step)
    run = tensors_of(problem, simt.run(problem.entry, problem.arguments()))
    for name, exact in problem.expected(np.float64).items():
        torch.testing.assert_close(run[name].double(), exact.double(), rtol=1e-5, atol=1e-6)


def test_more_tensors_than_one_launch_takes() -> None:
    problem = Problem([Parameter(1 + i % 9, ("bits", "all")[i % 2], factor=1 / (1 + i)) for i in range(400)])
    run = simt.run(problem.entry, problem.arguments())
    assert not run.reports, run.text()
    assert run.statistics["launches"] == 2
    assert_same(problem, tensors_of(problem, run), problem.expected(), "400 tensors")


def test_what_the_kernels_do_not_take_is_refused() -> None:
    for parameter, message in (
        (Parameter(8, param=F16), "masked_adamw on CUDA steps parameters of float32 and bfloat16"),
        (Parameter(8, copy=F32), "takes gradients of float32, bfloat16 and float16, and copies of the last two"),
    ):
        with pytest.raises(RuntimeError, match=message):
            simt.run("masked_adamw", Problem([parameter]).arguments())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("step", ["adamw", "sgd"])
def test_ptx(step: Step, mode: str) -> None:
    small = [replace(x, size=min(x.size, 40 * x.columns)) for x in ON_BOTH] + ALONE
    problem = replace(problem_of(step, mode), parameters=small, state={})
    again = replay(simt.run(problem.entry, problem.arguments(), record=True), SOURCES, 1)
    assert_same(problem, tensors_of(problem, again), problem.expected(), "PTX")


# number: what is wrong, the mode that shows it. They stand at `simt::mutant`.
MUTANTS = {
    330: ("elements behind the last are read", "grad"),
    331: ("elements behind the last are written", "grad"),
    332: ("all tensors have the same random bits", "grad"),
    333: ("random bits are added to what is not finite", "grad"),
    334: ("the cut counts within each tensor", "grad"),
    335: ("one more of the equal magnitudes is kept", "grad"),
    336: ("every row has the mask of the first", "freeze"),
    337: ("the gradient's square is rounded in another order", "grad"),
    338: ("the weight's step is rounded once", "grad"),
    339: ("weights that stay are not copied", "freeze"),
    340: ("gradients are not scaled", "update"),
    341: ("masked weights move", "freeze"),
    342: ("a tensor has the factor of its place in the table", "grad"),
    343: ("a factor that is not a number is used", "grad"),
    344: ("tensors off 16 bytes are read 16 bytes at a time", "grad"),
}


@pytest.mark.mutants("update")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_planted_bug_is_seen(mutant: int) -> None:
    what, mode = MUTANTS[mutant]
    problem = problem_of("adamw", mode)
    run = simt.run(problem.entry, problem.arguments(), build="hooks", mutant=mutant)
    if run.reports:
        return
    with pytest.raises(AssertionError):
        assert_same(problem, tensors_of(problem, run), problem.expected(), what)
