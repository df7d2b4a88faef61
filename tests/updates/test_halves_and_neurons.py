"""Half and neuron-level fine-tuning: what is drawn, what trains, and what keeps every bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from longspan.updates import (
    FusedAdamW,
    HalfFineTuning,
    NeuronFineTuning,
    choose_neurons,
    half_of,
    load_neurons,
    neuron_scores,
    save_neurons,
)
from tests.updates.models import changed, decoder, fill_gradients, weights


def share(model: torch.nn.Module, trained: set[str], part: str) -> float:
    sizes = {name: p.numel() for name, p in model.named_parameters() if part in name}
    return sum(n for name, n in sizes.items() if name in trained) / sum(sizes.values())


@pytest.mark.parametrize("kv_heads", [4, 1])
def test_half_of_attention_and_feed_forwards_trains(kv_heads: int) -> None:
    model = decoder(6, kv_heads=kv_heads)
    for stage in range(4):
        trained = half_of(dict(model.named_parameters()), seed=3, stage=stage)
        assert share(model, trained, "self_attn") == 0.5  # with shared key/value heads too
        assert share(model, trained, "mlp") == 0.5
        assert share(model, trained, "layernorm") == 0.5
        assert {"embed_tokens.weight", "norm.weight"} <= trained
        assert not half_of(dict(model.named_parameters()), seed=3, embeddings=False) & {"embed_tokens.weight"}


def test_the_draw_depends_on_seed_and_stage_only() -> None:
    names = list(dict(decoder().named_parameters()))
    assert half_of(names, seed=1, stage=2) == half_of(reversed(names), seed=1, stage=2)
    assert half_of(names, seed=1, stage=2) != half_of(names, seed=1, stage=3)
    assert half_of(names, seed=1) != half_of(names, seed=2)
    drawn = set().union(*(half_of(names, seed=1, stage=stage) for stage in range(12)))
    never = {name for name in names if name not in drawn}
    assert not never  # every tensor has its stages
    with pytest.raises(ValueError, match="knows layers by the names"):
        half_of(["a.weight", "layers.0.conv.weight"], seed=0)


def test_frozen_halves_keep_every_bit_and_cost_no_state() -> None:
    model = decoder()
    HalfFineTuning().select(model, seed=0)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    before = weights(model)
    optimizer = FusedAdamW([p for p in model.parameters() if p.requires_grad], 1e-2, weight_decay=0.1)
    for step in range(3):
        fill_gradients(model, step)
        optimizer.step()
    for name, moved in changed(before, model).items():
        assert moved.any() == (name in trained), name
    held = sum(x.nbytes for state in optimizer.state.values() for x in state.values())
    assert held == 8 * sum(p.numel() for p in model.parameters() if p.requires_grad)


def tuned(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p + 0.1 * torch.randn(p.shape) for name, p in model.state_dict().items()}


def test_only_chosen_neurons_change(tmp_path: Path) -> None:
    model, path = decoder(), tmp_path / "neurons.safetensors"
    torch.manual_seed(1)
    scores = neuron_scores(model.state_dict(), tuned(model))
    assert len(scores) == 8
    chosen = choose_neurons(scores, 50)
    save_neurons(chosen, path)
    assert all(torch.equal(each.mask, chosen[name].mask) for name, each in load_neurons(path).items())
    method = NeuronFineTuning(neurons=str(path))
    method.select(model, seed=0)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = FusedAdamW(named.items(), 1e-2, weight_decay=0.1, clip=1.0, **method.options(named))
    method.attach(optimizer, named)
    before = weights(model)
    for step in range(3):
        fill_gradients(model, step)
        optimizer.step()
    count = 0
    for name, moved in changed(before, model).items():
        if name not in chosen:
            assert not moved.any()
            continue
        keep = chosen[name].mask.bool()
        keep = keep[:, None] if chosen[name].kind == "rows" else keep
        assert torch.equal(moved, keep.expand_as(moved))
        count += int(chosen[name].mask.sum())
    assert count == 50


def test_all_neurons_are_the_plain_steps_of_their_matrices() -> None:
    results = []
    for masked in (True, False):
        model = decoder()
        torch.manual_seed(1)
        scores = neuron_scores(model.state_dict(), tuned(model))
        named = {name: p for name, p in model.named_parameters() if name in scores}
        optimizer = FusedAdamW(named.items(), 1e-2, weight_decay=0.1, clip=1.0, mode="freeze")
        if masked:
            for name, each in choose_neurons(scores, sum(map(len, scores.values()))).items():
                optimizer.set_mask(named[name], each.to(named[name]))
        for step in range(3):
            fill_gradients(model, step)
            optimizer.step()
        results.append(weights(model))
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=1e-6, atol=1e-7)


def test_the_most_turned_are_chosen_whatever_their_length() -> None:
    base = {"layers.0.mlp.up_proj.weight": torch.eye(4), "layers.0.mlp.down_proj.weight": torch.eye(4)}
    probe = {name: x.clone() for name, x in base.items()}
    probe["layers.0.mlp.up_proj.weight"][2] = torch.tensor([1.0, 0, 1.0, 0])
    probe["layers.0.mlp.down_proj.weight"][:, 1] *= 7  # longer, not turned
    chosen = choose_neurons(neuron_scores(base, probe), 1)
    assert chosen["layers.0.mlp.up_proj.weight"].mask.tolist() == [0, 0, 1, 0]
    assert not chosen["layers.0.mlp.down_proj.weight"].mask.any()
    assert not any(each.mask.any() for each in choose_neurons(neuron_scores(base, probe), 0).values())
    assert all(each.mask.all() for each in choose_neurons(neuron_scores(base, probe), 8).values())


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="5 neurons are asked for; there are 4"):
        choose_neurons({"layers.0.mlp.up_proj.weight": torch.zeros(4)}, 5)
    with pytest.raises(ValueError, match="no parameter belongs to up_proj, down_proj"):
        neuron_scores({"a.weight": torch.eye(2)}, {"a.weight": torch.eye(2)})
    with pytest.raises(FileNotFoundError, match="save_neurons writes one"):
        load_neurons(tmp_path / "none")
    (tmp_path / "broken").write_bytes(b"12345678901234567890")
    with pytest.raises(ValueError, match="cannot be read"):
        load_neurons(tmp_path / "broken")
    save_neurons(choose_neurons({"layers.9.mlp.up_proj.weight": torch.zeros(4)}, 2), tmp_path / "other")
    with pytest.raises(ValueError, match=r"chooses neurons of layers\.9"):
        NeuronFineTuning(neurons=str(tmp_path / "other")).select(decoder(), seed=0)
