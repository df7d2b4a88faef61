"""`memory.offload: cpu`: what decoder layers save leaves the device, and the step stays the same to the bit."""

from __future__ import annotations

import copy
import gc
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import longspan
from elsewhere import Elsewhere, moved
from families import build, gradients, recipe, tokens
from longspan.memory import measure
from longspan.patch.layers import STATE, Offload, offload

T = 64


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "SMALLEST", 1024)


def pair(family: str = "llama", *, recompute: str = "none", **changes: Any) -> tuple[Any, Any, Elsewhere]:
    """A patched model, its twin that offloads, and what moves."""
    model = build(family, **changes).train()
    twin = copy.deepcopy(model)
    longspan.patch(model, recipe(memory={"recompute": recompute}))
    longspan.patch(twin, recipe(memory={"recompute": recompute, "offload": "cpu"}))
    mover = Elsewhere()
    return model, moved(twin, mover), mover


def step(model: Any, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(seed)
    ids = tokens(1, T, seed)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.detach(), gradients(model)


def assert_equal(given: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]) -> None:
    assert torch.equal(given[0], expected[0])
    assert given[1].keys() == expected[1].keys()
    for name, value in given[1].items():
        assert torch.equal(value, expected[1][name]), name


@pytest.mark.parametrize("recompute", ["none", "mlp", "mlp+qkv", "layer"])
def test_steps_are_the_same_to_the_bit(family: str, recompute: str) -> None:
    model, twin, mover = pair(family, recompute=recompute)
    for seed in range(2):
        assert_equal(step(twin, seed), step(model, seed))
    assert mover.sizes
    assert not mover.held, "host copies outlive the backward"


def test_dropout_draws_the_same_masks() -> None:
    for recompute in ("mlp+qkv", "layer"):
        model, twin, _ = pair("opt", recompute=recompute, dropout=0.2)
        assert_equal(step(twin), step(model))


def test_checkpointing_by_transformers() -> None:
    model, twin, mover = pair()
    for one in (model, twin):
        one.gradient_checkpointing_enable({"use_reentrant": False})
    assert_equal(step(twin), step(model))
    assert len(mover.sizes) == 2, "one input a layer"


@pytest.mark.parametrize("recompute", ["none", "mlp", "mlp+qkv", "layer"])
def test_what_stays_on_the_device(recompute: str) -> None:
    """Between forward and backward layers hold nothing but small vectors; the rest, and no weight, is on the host."""
    long = 512
    changes = {"max_position_embeddings": long}
    kept, moved_bytes = {}, {}
    for layers in (2, 4):
        model, twin, mover = pair("llama", recompute=recompute, num_hidden_layers=layers, **changes)
        for name, one in (("here", model), ("away", twin)):
            one.requires_grad_(False)
            ids = tokens(1, long)
            given = {"inputs_embeds": one.get_input_embeddings()(ids).requires_grad_(), "labels": ids}
            one(**given).loss.backward()
            with measure() as live:
                loss = one(**given).loss
            kept[name, layers] = live.end_bytes
            moved_bytes[layers] = sum(one.values.nbytes for one in mover.held)
            del loss
    one_layer = (kept["here", 4] - kept["here", 2]) / 2
    left = (kept["away", 4] - kept["away", 2]) / 2
    assert one_layer >= 64 * long * 4
    assert left <= 2 * 1024 + torch.get_rng_state().numel()  # less than SMALLEST each: rstd; the generator's state
    assert (moved_bytes[4] - moved_bytes[2]) / 2 == pytest.approx(one_layer - left, rel=0.03)


def test_each_storage_moves_once_and_a_layer_ahead() -> None:
    """Copies back start for a layer and the one before it, before the first of them is waited for."""
    _, twin, mover = pair(num_hidden_layers=4)
    step(twin)
    away = [number for what, number in mover.log if what == "away"]
    assert sorted(away) == list(range(len(mover.sizes)))
    back = [number for what, number in mover.log if what == "back"]
    assert sorted(back) == sorted(away)
    a_layer = len(away) // 4
    assert len(away) == 4 * a_layer
    first = next(place for place, (what, _) in enumerate(mover.log) if what == "here")
    assert [what for what, _ in mover.log[:first]].count("back") == 2 * a_layer
    for number, last in itertools.pairwise(range(4)):
        assert back.index(last * a_layer) < back.index(number * a_layer), "later layers come back first"


def test_a_graph_that_is_kept() -> None:
    model, twin, _ = pair(recompute="mlp+qkv")
    found = []
    for one in (model, twin):
        ids = tokens(1, T)
        loss = one(input_ids=ids, labels=ids).loss
        loss.backward(retain_graph=True)
        loss.backward()
        found.append((loss.detach(), gradients(one)))
    assert_equal(*found)


def test_two_forwards_before_a_backward() -> None:
    model, twin, mover = pair()
    found = []
    for one in (model, twin):
        loss = sum(one(input_ids=tokens(1, T, seed), labels=tokens(1, T, seed)).loss for seed in range(2))
        loss.backward()
        found.append((loss.detach(), gradients(one)))
    assert_equal(*found)
    del loss
    assert not mover.held


def test_nothing_is_left_to_the_garbage_collector() -> None:
    for recompute in ("none", "mlp+qkv", "layer"):
        _, twin, mover = pair(recompute=recompute)
        step(twin)
        gc.collect()
        gc.disable()
        try:
            ids = tokens(1, T)
            loss = twin(input_ids=ids, labels=ids).loss
            del loss
            assert not mover.held
        finally:
            gc.enable()


def test_evaluation_moves_nothing() -> None:
    _, twin, mover = pair()
    with torch.no_grad():
        twin(input_ids=tokens(1, T))
    twin.eval()(input_ids=tokens(1, T), labels=tokens(1, T)).loss.backward()
    assert not mover.log


def test_a_copied_model_has_its_own() -> None:
    model = build("llama").train()
    longspan.patch(model, recipe(memory={"offload": "cpu"}))
    twin = copy.deepcopy(model)
    found = {id(getattr(m, STATE).offload) for m in twin.modules() if STATE in m.__dict__}
    ours = {id(getattr(m, STATE).offload) for m in model.modules() if STATE in m.__dict__}
    assert len(found) == len(ours) == 1
    assert found != ours


def test_a_saved_tensor_that_changes_is_an_error() -> None:
    """The copy runs beside: what it reads must stay."""

    def change() -> Tensor:
        x = torch.ones(1024, requires_grad=True)
        with Offload(Elsewhere()).shelf():
            y = x * 1
            z = y.square()
            y.add_(1)
        return z

    with pytest.raises(RuntimeError, match=r"saved tensor of shape \(1024,\) was changed in place"):
        change()


def test_on_the_cpu_it_is_an_error() -> None:
    model = build("llama").train()
    report = longspan.patch(model, recipe(memory={"offload": "cpu"}))
    assert any("saves to cpu" in what for what in report.replaced.values())
    with pytest.raises(
        ValueError, match=r"memory\.offload cpu moves .* from a GPU .* runs on cpu; use memory\.offload none"
    ):
        step(model)


def test_without_lean_layers_the_report_says_so() -> None:
    off = dict.fromkeys(("norm", "mlp", "rope", "lora"), False)
    report = longspan.patch(build("llama"), recipe(lean=off, memory={"offload": "cpu", "recompute": "mlp"}))
    assert {"memory.offload", "memory.recompute"} <= report.skipped.keys()


class _Streams:
    """Stands for torch.cuda: notes the order of what streams are told."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.inside = "compute"

    def Stream(self, device: Any) -> Any:
        def event() -> str:
            self.log.append("copy: event")
            return "event"

        return SimpleNamespace(
            name="copy", wait_stream=lambda other: self.log.append(f"copy: wait for {other.name}"), record_event=event
        )

    def current_stream(self, device: Any) -> Any:
        return SimpleNamespace(name="compute", wait_event=lambda event: self.log.append(f"compute: wait for {event}"))

    @contextmanager
    def stream(self, one: Any) -> Iterator[None]:
        self.inside = one.name
        yield
        self.inside = "compute"


class _OnGpu:
    """Stands for a CUDA tensor or its pinned copy."""

    dtype, shape, device = torch.float32, torch.Size([8]), torch.device("cuda", 0)

    def __init__(self, streams: _Streams) -> None:
        self.streams = streams

    def record_stream(self, one: Any) -> None:
        self.streams.log.append(f"{one.name}: reads")

    def copy_(self, x: Any, non_blocking: bool) -> None:
        self.streams.log.append(f"{self.streams.inside}: to host")

    def to(self, device: Any, non_blocking: bool) -> _OnGpu:
        assert non_blocking
        self.streams.log.append(f"{self.streams.inside}: to device")
        return self


def test_the_order_of_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies wait for what computes, products wait for copies, and memory stays until both are done."""
    streams = _Streams()
    for name in ("Stream", "current_stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(streams, name))
    monkeypatch.setattr(torch, "empty", lambda *_, pin_memory, **__: _OnGpu(streams) if pin_memory else None)
    mover: Any = offload.CudaMover()
    mover.here(mover.back(mover.away(_OnGpu(streams))))
    assert streams.log == [
        "copy: wait for compute",
        "copy: to host",
        "copy: reads",
        "copy: to device",
        "copy: event",
        "compute: wait for event",
        "compute: reads",
    ]


@pytest.mark.parametrize("recompute", ["none", "mlp", "mlp+qkv", "layer"])
@pytest.mark.parametrize(
    "method",
    [
        {"forward": "eliminate", "mlp": "rows", "selector": "scores"},
        {"forward": "dense", "mlp": "rows"},
        {"forward": "dense", "mlp": "dense", "selector": "gradient"},
        {"forward": "dense", "mlp": "rows", "selector": "token_loss"},
    ],
    ids=str,
)
def test_with_token_elimination(method: dict[str, Any], recompute: str) -> None:
    model = build("llama").train()
    twin = copy.deepcopy(model)
    chosen = {"method": "lemo", "layers": [0, 1], "block": 8} | method
    longspan.patch(model, recipe(tokens=chosen, memory={"recompute": recompute}))
    longspan.patch(twin, recipe(tokens=chosen, memory={"recompute": recompute, "offload": "cpu"}))
    mover = Elsewhere()
    twin = moved(twin, mover)
    for one in (model, twin):
        one.config.use_cache = False
    assert_equal(step(twin), step(model))
    assert mover.sizes
    assert not mover.held
