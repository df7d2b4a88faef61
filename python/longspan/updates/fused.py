"""What optimizers share whose step touches gradients, moments and weights of all parameters once."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from longspan.ops import UpdateMask, squared_norms
from longspan.registry import choose
from longspan.updates.clipping import GradientClip
from longspan.updates.masks import GradientMask, Ranked
from longspan.updates.state import keep_state_dtypes

ROUNDING = ("master", "stochastic", "nearest")
FORMAT = "longspan"  # key of a state dict that says what made it


@dataclass
class Entry:
    """A parameter with a gradient, and what this step does with it."""

    name: str
    group: dict[str, Any]
    number: int  # of the group
    parameter: Tensor
    grad: Tensor
    mask: UpdateMask = field(default_factory=UpdateMask)


@dataclass
class _Plan:
    entries: list[Entry]
    ranked: Ranked | None = None
    factors: Tensor | None = None


class FusedOptimizer(torch.optim.Optimizer):
    """What `FusedAdamW` and `FusedSGD` share: masks, clipping, rounding, state dicts.

    params: parameters, (name, parameter) pairs, or groups of them as for any torch optimizer; names are needed where
    layers or modules are told apart. clip: bounds norms inside the step (a number bounds that of all gradients
    together), at no pass over memory of its own; a step with a gradient that is not finite then changes nothing,
    without waiting for the device. mask: what takes part. mode: what masked elements of `set_mask` still do.

    rounding, for parameters that are not float32: "master" steps a float32 copy, kept in the state, and rounds it into
    the parameter; "stochastic" and "nearest" step a bfloat16 parameter itself. clear_gradients: the step leaves zeros
    in the gradients.

    copies: tensors of a narrower dtype, by parameter, that get its value after each step, rounded.
    """

    def __init__(
        self,
        params: Iterable[Any],
        defaults: dict[str, Any],
        *,
        clip: GradientClip | float | None = None,
        mask: GradientMask | None = None,
        mode: str = "freeze",
        rounding: str = "master",
        clear_gradients: bool = False,
        seed: int = 0,
    ) -> None:
        self.clip = GradientClip(clip) if isinstance(clip, int | float) else clip
        self.mask = mask
        self.mode = mask.mode if mask is not None else mode
        self.rounding = choose("rounding", rounding, ROUNDING)
        self.clear_gradients = clear_gradients
        self.seed = seed
        self.copies: dict[Tensor, Tensor] = {}
        self._fixed: dict[Tensor, UpdateMask] = {}
        self._plan: _Plan | None = None
        super().__init__(params, defaults | {"step": 0})
        self._check()

    def _check(self) -> None:
        if self.mask is not None and self.clip is not None:
            finer = {"tensor": ("tensor", "module", "layer", "all"), "layer": ("layer", "all"), "global": ("all",)}
            if self.mask.clip_on == "masked" and self.clip.component not in finer[self.mask.scope]:
                raise ValueError(
                    f"clipping each {self.clip.component} needs its masked norm, and masks rank within "
                    f"{self.mask.scope}: give the mask scope tensor, or clip_on dense"
                )
        named = self.clip is not None and self.clip.component in ("module", "layer")
        named |= self.mask is not None and self.mask.scope == "layer"
        for group in self.param_groups:
            if named and "param_names" not in group:
                raise ValueError("layers and modules are told apart by names: give model.named_parameters()")
            for p in group["params"]:
                if type(p).__name__ == "DTensor" or hasattr(p, "placements"):
                    raise ValueError(
                        f"{type(self).__name__} steps whole tensors, and a parameter of shape {tuple(p.shape)} is "
                        "sharded (DTensor); thresholds and norms of shards are not available"
                    )

    def set_mask(self, parameter: Tensor, mask: UpdateMask) -> None:
        """Only the rows, columns or bits of `mask` take part from now on; the others do what `mode` says."""
        if self.mask is not None:
            raise ValueError(
                "a gradient mask and a fixed mask on the same parameters have no defined meaning; give one"
            )
        self._fixed[parameter] = mask

    # A step.

    @torch.no_grad()
    def prepare(self, *, norm: bool = True) -> Tensor | None:
        """Thresholds and clipping factors of the gradients as they are; the next `step` uses them.

        Returns the norm that clips (float64, on the device): of what the masks keep, or of all; None without gradients
        or if nothing needs it and norm is False. It is not finite where a gradient is not.
        """
        entries = self._entries()
        self._plan = _Plan(entries)
        if not entries:
            return None
        grads = [e.grad for e in entries]
        ranked = self._rank(entries, norms=norm or self.clip is not None)
        if self.clip is None and ranked is None and not norm:
            return None
        kept, whole = self._squares(entries, ranked)
        total = kept.sum().sqrt()
        finite = whole.sum().isfinite()
        factors = None
        if self.clip is not None:
            factors = self.clip.factors([e.name for e in entries], [g.numel() for g in grads], kept)
        elif ranked is not None:
            factors = torch.ones(len(entries), device=grads[0].device)
        if factors is not None:
            factors = torch.where(finite, factors, torch.nan)
        self._plan = _Plan(entries, ranked, factors)
        return torch.where(finite, total, torch.nan) if norm or self.clip is not None else None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; `prepare` is called if it was not."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._plan is None:
            self.prepare(norm=False)
        assert self._plan is not None
        plan, self._plan = self._plan, None
        for number, group in enumerate(self.param_groups):
            own = [i for i, e in enumerate(plan.entries) if e.number == number]
            if own:
                group["step"] += 1
                entries = [plan.entries[i] for i in own]
                self._step_group(group, entries, self._options(plan, own))
        return loss

    @abstractmethod
    def _step_group(self, group: dict[str, Any], entries: list[Entry], options: dict[str, Any]) -> None:
        """The op of the method on one parameter group; options: what all of them take beside their state."""

    def _entries(self) -> list[Entry]:
        found = []
        for number, group in enumerate(self.param_groups):
            names = group.get("param_names") or [f"{number}#{i}" for i in range(len(group["params"]))]
            for name, p in zip(names, group["params"], strict=True):
                if p.grad is None:
                    continue
                if p.grad.is_sparse:
                    raise ValueError(f"{type(self).__name__}: the gradient of {name} is sparse; dense ones are stepped")
                mask = self._fixed.get(p, UpdateMask())
                found.append(Entry(name, group, number, p, p.grad.contiguous(), mask))
                if found[-1].grad is not p.grad:
                    p.grad = found[-1].grad
        return found

    def _rank(self, entries: list[Entry], *, norms: bool) -> Ranked | None:
        if self.mask is None:
            return None
        masked = [(e, e.group.get("keep_ratio", self.mask.keep_ratio)) for e in entries]
        masked = [(e, ratio) for e, ratio in masked if ratio < 1 and e.grad.numel()]
        if not masked:
            return None
        unique = [f"{id(e.group)}/{e.name}" if self.mask.scope == "tensor" else e.name for e, _ in masked]
        ranked = self.mask.rank(unique, [e.grad for e, _ in masked], [ratio for _, ratio in masked], norms=norms)
        for (e, _), mask in zip(masked, ranked.masks, strict=True):
            e.mask = mask
        return ranked

    def _squares(self, entries: list[Entry], ranked: Ranked | None) -> tuple[Tensor, Tensor]:
        """float64 [n] twice: sums of squares that count for clipping, and of whole gradients.

        Of gradients that are ranked together the first of them has the sum of all.
        """
        device = entries[0].grad.device
        whole = torch.zeros(len(entries), dtype=torch.float64, device=device)
        plain = [i for i, e in enumerate(entries) if e.mask.kind != "threshold"]
        if plain:
            whole[torch.tensor(plain, device=device)] = squared_norms([entries[i].grad for i in plain])
        kept = whole.clone()
        for i in plain:
            if entries[i].mask.kind != "all":
                kept[i] = _masked_square(entries[i])
        if ranked is not None:
            assert self.mask is not None
            places: dict[int, int] = {}
            for i, e in enumerate(entries):
                if e.mask.kind == "threshold":
                    places.setdefault(e.mask.group, i)
            where = torch.tensor([places[g] for g in range(len(places))], device=device)
            whole[where] = ranked.thresholds.all_squares
            dense = self.mask.clip_on == "dense"
            kept[where] = ranked.thresholds.all_squares if dense else ranked.thresholds.squares
        return kept, whole

    def _options(self, plan: _Plan, own: list[int]) -> dict[str, Any]:
        """What both steps take beside their state, of the entries `own`."""
        entries = [plan.entries[i] for i in own]
        copies: list[Tensor | None] = []
        for e in entries:
            copies.append(e.parameter if self._has_master(e.parameter) else self.copies.get(e.parameter))
        factors = plan.factors
        if factors is not None:
            factors = factors[torch.tensor(own, device=factors.device)]
        stochastic = self.rounding == "stochastic" and any(e.parameter.dtype != torch.float32 for e in entries)
        number = entries[0].group["step"] + (entries[0].number << 40)
        return {
            "masks": [e.mask for e in entries],
            "thresholds": None if plan.ranked is None else plan.ranked.thresholds,
            "mode": self.mode,
            "factors": factors,
            "copies": copies,
            "zero_grad": self.clear_gradients,
            "stochastic_seed": (self.seed << 48) + number if stochastic else None,
        }

    # State.

    def _has_master(self, parameter: Tensor) -> bool:
        return self.rounding == "master" and parameter.dtype != torch.float32

    def _stepped(self, entries: list[Entry]) -> list[Tensor]:
        """What a step writes to: the parameters, or their float32 masters."""
        out = []
        for e in entries:
            p = e.parameter
            if self._has_master(p):
                if "master" not in self.state[p]:
                    self.state[p]["master"] = p.detach().float().contiguous()
                out.append(self.state[p]["master"])
            else:
                out.append(p)
        return out

    def _moments(self, entries: list[Entry], name: str) -> list[Tensor]:
        out = []
        for e in entries:
            state = self.state[e.parameter]
            if name not in state:
                state[name] = e.parameter.new_zeros(e.parameter.shape, dtype=torch.float32)
            out.append(state[name])
        return out

    def _about(self) -> dict[str, Any]:
        """What a state dict must have been made with."""
        mask = None if self.mask is None else {"mode": self.mask.mode, "scope": self.mask.scope}
        return {"optimizer": type(self).__name__, "mask": mask, "rounding": self.rounding}

    def state_dict(self) -> dict[str, Any]:
        """As torch's, and what made it."""
        return {**super().state_dict(), FORMAT: self._about()}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises ValueError for the state of another method; moments and masters stay float32."""
        given = dict(state_dict)
        about = given.pop(FORMAT, None)
        if about != self._about():
            raise ValueError(f"the saved optimizer is {about}; this one is {self._about()}")
        super().load_state_dict(given)
        keep_state_dtypes(self, given)
        self._plan = None


def _masked_square(entry: Entry) -> Tensor:
    """The sum of squares of the rows or columns that a fixed mask keeps."""
    mask, grad = entry.mask, entry.grad
    if mask.kind == "none":
        return torch.zeros((), dtype=torch.float64, device=grad.device)
    assert mask.mask is not None
    matrix = grad.view(-1, grad.shape[-1])
    if mask.kind == "bits":
        places = torch.arange(grad.numel(), device=grad.device)
        keep = mask.mask[places >> 3] >> (places & 7) & 1
        return (grad.float().square().flatten() * keep).sum(dtype=torch.float64)
    norms = torch.linalg.vector_norm(matrix, dim=1 if mask.kind == "rows" else 0, dtype=torch.float32)
    return (norms.double().square_() * (mask.mask != 0)).sum()
