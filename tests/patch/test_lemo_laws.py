"""What token elimination keeps, whom it isolates, what it refuses, and the files it reads."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import longspan
from families import build, gradients, recipe, tokens
from longspan.patch.tokens.install import untrained
from longspan.patch.tokens.predictor_file import PredictorFile, Thresholds, read_predictor, read_thresholds
from longspan.patch.tokens.rows import RowsLayer
from masked import Fixed
from test_lemo import BLOCK, LENGTH, MODES, _adapted, assert_equal_steps, lemo, pair, step

# ---- memory ------------------------------------------------------------------------------------------------------

C, F, HEADS, KV, L, M = 256, 512, 8, 4, 3, 1024
WIDE = {
    "hidden_size": C,
    "intermediate_size": F,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV,
    "num_hidden_layers": L,
    "max_position_embeddings": M,
}
RANK = 4


def saved_bytes(**changes: Any) -> int:
    """Bytes of the storages that one forward saves, weights left out."""
    model = _adapted(build("llama", **WIDE), ["q_proj", "k_proj", "v_proj", "o_proj"]).float().train()
    longspan.patch(model, recipe(M, **changes))
    known = {p.untyped_storage()._cdata for p in [*model.parameters(), *model.buffers()]}
    storages: dict[int, Any] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in known:
            storages[storage._cdata] = storage
        return x

    ids = tokens(1, M)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        model(ids, labels=ids, use_cache=False)
    return sum(storage.nbytes() for storage in storages.values())


def attention_bytes(rows: float, kv_rows: float) -> float:
    """x, q, o and the statistics of `rows`, k and v of `kv_rows`, and the adapters' ranks."""
    kv = KV * (C // HEADS)
    return 4 * rows * (3 * C + HEADS + 1 + 4 * RANK) + 4 * kv_rows * 2 * kv


def mlp_bytes(rows: float) -> float:
    """x', its statistic, gate and up (weights frozen)."""
    return 4 * rows * (C + 1 + 2 * F)


@pytest.mark.parametrize("ratio", [0.25, 0.5])
@pytest.mark.parametrize(("forward", "mlp"), MODES)
def test_saved_bytes_are_those_of_the_formulas(forward: str, mlp: str, ratio: float) -> None:
    config = {"method": "lemo", "layers": [1], "forward": forward, "mlp": mlp, "keep_ratio": ratio}
    given = saved_bytes(tokens=config | {"selector": "random"})
    dense = saved_bytes()
    layer = attention_bytes(M, M) + mlp_bytes(M)
    kept = attention_bytes(ratio * M, M if forward == "dense" else ratio * M)
    kept += mlp_bytes(M if mlp == "dense" else ratio * M)
    expected = dense - layer + kept
    assert abs(given - expected) <= 0.02 * kept, f"{given} bytes, {expected:.0f} by formula, of a layer {layer:.0f}"


def test_recompute_saves_on_top() -> None:
    config = {"method": "lemo", "layers": [1], "forward": "dense", "mlp": "rows", "keep_ratio": 0.25}
    given, dense = (saved_bytes(memory={"recompute": "mlp"}, **more) for more in ({"tokens": config}, {}))
    layer = attention_bytes(M, M) + 4 * M * C
    kept = attention_bytes(M / 4, M) + 4 * M / 4 * C
    assert abs(given - (dense - layer + kept)) <= 0.02 * kept


@pytest.mark.parametrize("selector", ["gradient", "token_loss"])
def test_a_choice_in_the_backward_keeps_the_input_alone(selector: str) -> None:
    config = {"method": "lemo", "layers": [1], "forward": "dense", "mlp": "rows", "selector": selector}
    given, dense = saved_bytes(tokens=config), saved_bytes()
    assert abs(given - (dense - attention_bytes(M, M) - mlp_bytes(M) + 4 * M * C)) <= 0.02 * 4 * M * C


# ---- laws --------------------------------------------------------------------------------------------------------


def hidden_jacobian(model: Any, x: Tensor, row: int) -> Tensor:
    """How one row of a model's last hidden state depends on all input embeddings: [T, C] of one random direction."""
    x = x.clone().requires_grad_()
    out = model.model(inputs_embeds=x, use_cache=False).last_hidden_state
    direction = torch.randn(out.shape[-1], generator=torch.Generator().manual_seed(row), dtype=x.dtype)
    (found,) = torch.autograd.grad((out[0, row] * direction).sum(), x)
    return found[0]


def test_isolation_and_causality() -> None:
    """Dropped rows are the identity to an elimination layer; kept rows see no dropped and no later one."""
    model, _ = pair("llama", num_hidden_layers=1)
    model.model.norm = torch.nn.Identity()
    fixed = Fixed([[(0, LENGTH)]], LENGTH, BLOCK, 0.4)
    longspan.patch(model.train(), recipe(LENGTH, tokens=lemo(forward="eliminate", mlp="skip", layers=[0])))
    kept = fixed.kept("model.layers.0")[0]
    x = torch.randn(1, LENGTH, 64, dtype=torch.float64)
    with fixed.installed():
        for row in range(0, LENGTH, 5):
            found = hidden_jacobian(model, x, row)
            seen = found.abs().sum(-1) > 0
            allowed = torch.arange(LENGTH) == row
            if kept[row]:
                allowed |= kept & (torch.arange(LENGTH) <= row)
            assert torch.equal(seen, allowed), f"row {row}"
            if not kept[row]:
                direction = torch.randn(64, generator=torch.Generator().manual_seed(row), dtype=torch.float64)
                assert torch.equal(found[row], direction)


def test_a_shift_of_all_positions_changes_nothing_and_new_numbers_do(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = pair("llama")
    ids = tokens(1, LENGTH)
    fixed = Fixed([[(0, LENGTH)]], LENGTH, BLOCK, 0.4)
    longspan.patch(model, recipe(LENGTH, tokens=lemo(forward="eliminate")))
    positions = torch.arange(LENGTH)[None]

    def renumbered(self: RowsLayer, tables: Any, dtype: torch.dtype) -> Any:
        every = self.state.rotations.of(*tables, self.stream_batch, dtype)
        return replace(every, positions=every.positions[: len(self.rows)])

    with fixed.installed():
        first, shifted = (step(model, ids, position_ids=p) for p in (positions, positions + 37))
        monkeypatch.setattr(RowsLayer, "rotation", renumbered)
        wrong = step(model, ids)
    assert_equal_steps(shifted, first, 1e-5)
    assert abs(float(wrong[0] - first[0])) > 1e-3


def test_samples_of_a_batch_do_not_mix() -> None:
    """A batch gives the mean of its samples' losses, each with the choice that it has alone."""
    model, _ = pair("llama")
    longspan.patch(model.train(), recipe(LENGTH, tokens=lemo(forward="eliminate", selector="scores")))
    ids = tokens(2, LENGTH)
    both = step(model, ids)
    alone = [step(model, one[None]) for one in ids]
    assert abs(float(both[0]) - float(alone[0][0] + alone[1][0]) / 2) < 1e-9
    for name, gradient in both[1].items():
        torch.testing.assert_close(gradient, (alone[0][1][name] + alone[1][1][name]) / 2, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("selector", ["random", "scores", "gradient", "token_loss"])
def test_the_same_again_bit_for_bit(selector: str) -> None:
    results = []
    for _ in range(2):
        model = build("llama")
        longspan.patch(model, recipe(LENGTH, tokens=lemo(forward="dense", selector=selector)))
        torch.manual_seed(7)
        results.append(step(model, tokens(2, LENGTH)))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(results[0][1][name], results[1][1][name]) for name in results[0][1])


def test_accumulation_adds_up() -> None:
    model, _ = pair("llama")
    fixed = Fixed([[(0, LENGTH)]], LENGTH, BLOCK, 0.4)
    longspan.patch(model.train(), recipe(LENGTH, tokens=lemo(forward="dense")))
    ids = tokens(2, LENGTH)
    with fixed.installed():
        alone = [step(model, one[None])[1] for one in ids]
        for one in ids:
            labels = one.masked_fill(torch.arange(LENGTH) % 5 == 0, -100)[None]
            model(one[None], labels=labels, use_cache=False).loss.backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, alone[0][name] + alone[1][name], rtol=1e-9, atol=1e-12)


def test_offloading_and_undo() -> None:
    model = build("llama")
    twin = copy.deepcopy(model)
    config = lemo(forward="eliminate", selector="predictor", predictor="untrained")
    report = longspan.patch(model, recipe(LENGTH, tokens=config))
    assert "tokens: lemo, forward eliminate, 0.4 of blocks of 8 by predictor" in str(report)
    assert model.state_dict().keys() == twin.state_dict().keys(), "predictors are in no checkpoint"
    step(model, tokens(2, LENGTH))
    report.undo()
    assert not list(set(dict(model.named_buffers())) - set(dict(twin.named_buffers())))
    (given, _), (stock, _) = step(model, tokens(2, LENGTH)), step(twin, tokens(2, LENGTH))
    assert torch.equal(given, stock)


# ---- what is refused ---------------------------------------------------------------------------------------------


def test_a_cache_is_refused_in_training_and_served_in_evaluation() -> None:
    model = build("llama")
    longspan.patch(model, recipe(LENGTH, tokens=lemo()))
    generated = model.generate(tokens(1, 9), max_new_tokens=4, do_sample=False)
    assert generated.shape == (1, 13)
    with pytest.raises(ValueError, match="use_cache=False"):
        model.train()(tokens(1, 9), use_cache=True)


def test_hooks_in_a_layer_are_named() -> None:
    model = build("llama")
    longspan.patch(model, recipe(LENGTH, tokens=lemo()))
    model.model.layers[1].self_attn.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"model\.layers\.1: self_attn has hooks"):
        step(model, tokens(1, LENGTH))


def test_dropout_is_refused_where_the_gradient_would_have_another_mask() -> None:
    from peft import LoraConfig, get_peft_model

    for forward, mlp in MODES:
        model = get_peft_model(build("llama"), LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.3))
        longspan.patch(model, recipe(LENGTH, tokens=lemo(forward=forward, mlp=mlp)))
        if forward == "eliminate" and mlp != "rows":
            step(model, tokens(1, LENGTH))
            continue
        with pytest.raises(ValueError, match="drops at random"):
            step(model, tokens(1, LENGTH))


def test_compile_is_refused() -> None:
    model = build("llama")
    longspan.patch(model, recipe(LENGTH, tokens=lemo()))
    with pytest.raises(Exception, match="needs eager mode"):
        torch.compile(model.train(), backend="eager", fullgraph=True)(
            tokens(1, 12), labels=tokens(1, 12), use_cache=False
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": lemo(layers=[0, 5])}, "names layer 5; the model has layers 0 to 1"),
        ({"tokens": lemo(), "lean": dict.fromkeys(("norm", "mlp", "rope", "lora"), False)}, "are all false"),
        ({"tokens": lemo(forward="dense", selector="token_loss"), "lean": {"loss": False}}, "set lean.loss true"),
        ({"tokens": lemo(selector="predictor", predictor="nowhere.safetensors")}, "is no file"),
        ({"tokens": lemo(selector="scores", layers="thresholds", thresholds="nowhere.json")}, "is no file"),
    ],
)
def test_patch_refuses_and_leaves_the_model(changes: dict[str, Any], message: str) -> None:
    model = build("llama")
    twin = copy.deepcopy(model)
    with pytest.raises(ValueError, match=message):
        longspan.patch(model, recipe(LENGTH, **changes))
    (given, _), (stock, _) = step(model, tokens(1, 20)), step(twin, tokens(1, 20))
    assert torch.equal(given, stock)


def test_a_layer_of_another_family_is_refused() -> None:
    model = build("llama")
    model.model.layers[1].forward = model.model.layers[1].forward
    with pytest.raises(ValueError, match=r"tokens\.lemo cannot run in model\.layers\.1"):
        longspan.patch(model, recipe(LENGTH, tokens=lemo()))


# ---- files -------------------------------------------------------------------------------------------------------


def predictor_file(**changes: Any) -> PredictorFile:
    layers = {layer: untrained(64, layer, (6, 5)) for layer in (0, 1)}
    return PredictorFile(**({"layers": layers, "block": BLOCK, "hidden": 64, "count": 2} | changes))


def test_a_predictor_comes_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "predictor.safetensors"
    written = predictor_file(about={"steps": 3})
    written.write(path)
    found = read_predictor(path)
    assert (found.block, found.hidden, found.count, found.about) == (BLOCK, 64, 2, {"steps": 3})
    for layer, weights in found.layers.items():
        assert all(torch.equal(a, b) for a, b in zip(weights.tensors, written.layers[layer].tensors, strict=True))
    model = build("llama")
    longspan.patch(model, recipe(LENGTH, tokens=lemo(selector="predictor", predictor=str(path))))
    step(model, tokens(2, LENGTH))
    assert all(buffer.grad is None for buffer in model.buffers())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": 4}, "blocks of 4"),
        ({"hidden": 32, "layers": {n: untrained(32, n, (6, 5)) for n in (0, 1)}}, "width 32"),
        ({"count": 9}, "9 layers"),
        ({"layers": {0: untrained(64, 0, (6, 5))}}, "no predictor of layer 1"),
    ],
)
def test_a_predictor_of_another_model_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "predictor.safetensors"
    predictor_file(**changes).write(path)
    with pytest.raises(ValueError, match=message):
        longspan.patch(build("llama"), recipe(LENGTH, tokens=lemo(selector="predictor", predictor=str(path))))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "predictor.safetensors"
    predictor_file().write(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="cannot be read"):
        read_predictor(path)
    wrong = tmp_path / "thresholds.json"
    for text in ("{", "[]", json.dumps({"layers": {"0": "x"}, "kept": {}, "block": 8, "count": 2})):
        wrong.write_text(text)
        with pytest.raises(ValueError, match="is not of `longspan lemo thresholds`"):
            read_thresholds(wrong)


def test_thresholds_keep_what_reaches_them(tmp_path: Path) -> None:
    """A layer without one stays dense; 0 keeps every block that has a score, and is then the dense layer."""
    path = tmp_path / "thresholds.json"
    Thresholds({0: None, 1: 0.0}, {1: 1.0}, BLOCK, 2).write(path)
    assert read_thresholds(path) == Thresholds({0: None, 1: 0.0}, {1: 1.0}, BLOCK, 2)
    config = lemo(forward="eliminate", selector="scores", mlp="dense", layers="thresholds", thresholds=str(path))
    model, twin = pair("llama")
    report = longspan.patch(model, recipe(LENGTH, tokens=config))
    assert "tokens: lemo" in report.replaced["model.layers.1"]
    assert "tokens: lemo" not in report.replaced["model.layers.0"]
    longspan.patch(twin, recipe(LENGTH))
    ids = tokens(2, LENGTH)
    assert_equal_steps(step(model, ids), step(twin, ids), 1e-12)


def test_thresholds_of_other_blocks_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.json"
    Thresholds({1: 0.1}, {1: 1.0}, 4, 2).write(path)
    config = lemo(selector="scores", layers="thresholds", thresholds=str(path))
    with pytest.raises(ValueError, match="blocks of 4 in 2 layers"):
        longspan.patch(build("llama"), recipe(LENGTH, tokens=config))
