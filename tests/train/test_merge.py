"""Law: a merged run scores the same in plain transformers; an incomplete one is refused by the tensor's name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from longspan import folders
from longspan.cli.main import app
from longspan.recipe import Recipe
from longspan.train import weights
from longspan.train.merge import merge
from longspan.train.run import prepare
from runs import Stop, StopAfter, run_quietly, tensors

Make = Callable[..., dict[str, Any]]

VARIANTS: dict[str, dict[str, Any]] = {
    "lora with embeddings and norms, stretched": {"positions": {"method": "linear", "factor": 4.0}},
    "lora alone": {"adapter": {"method": "lora", "rank": 2}},
    "full fine-tuning, stretched": {
        "adapter": {"method": "none"},
        "positions": {"method": "linear", "factor": 2.0},
    },
}


def _logits(model: Any) -> torch.Tensor:
    ids = torch.randint(0, 250, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(ids).logits


@pytest.mark.parametrize("name", VARIANTS)
def test_merged_scores_the_same_in_plain_transformers(name: str, make: Make, cache: Path, tmp_path: Path) -> None:
    recipe = make(**VARIANTS[name])
    result = run_quietly(recipe, cache)
    out = merge(result.output, tmp_path / "merged")
    trained, _ = prepare(Recipe.model_validate(recipe))
    weights.load(trained, result.final, Recipe.model_validate(recipe))
    plain = AutoModelForCausalLM.from_pretrained(out)
    expected = _logits(trained)
    torch.testing.assert_close(_logits(plain), expected, rtol=1e-4, atol=1e-5)
    untrained = AutoModelForCausalLM.from_pretrained(recipe["model"])
    assert (_logits(untrained) - expected).abs().max() > 1e-2
    factor = recipe.get("positions", {}).get("factor", 1.0)
    assert plain.config.max_position_embeddings == 128 * factor
    assert plain.config.use_cache is True
    assert AutoTokenizer.from_pretrained(out)("road").input_ids
    folders.verify(out)
    assert not any("adapter" in path.name or path.name == "longspan.safetensors" for path in out.iterdir())


def test_bfloat16_run_merges_into_bfloat16(make: Make, cache: Path, tmp_path: Path) -> None:
    result = run_quietly(make(dtype="bfloat16"), cache)
    merged = tensors(merge(result.output, tmp_path / "merged"))
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}


def test_full_fine_tuning_leaves_a_plain_checkpoint(make: Make, cache: Path) -> None:
    result = run_quietly(make(adapter={"method": "none"}), cache)
    plain = AutoModelForCausalLM.from_pretrained(result.final)
    assert plain.config.use_cache is True
    assert AutoTokenizer.from_pretrained(result.final)("road").input_ids
    assert (_logits(plain) - _logits(AutoModelForCausalLM.from_pretrained(make()["model"]))).abs().max() > 1e-2


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_adapter_loads_with_plain_peft(make: Make, cache: Path) -> None:
    from peft import PeftModel

    recipe = make(adapter={"method": "lora", "rank": 2})
    result = run_quietly(recipe, cache)
    base = AutoModelForCausalLM.from_pretrained(recipe["model"])
    before = _logits(base)
    peft = PeftModel.from_pretrained(base, result.final)
    trained, _ = prepare(Recipe.model_validate(recipe))
    weights.load(trained, result.final, Recipe.model_validate(recipe))
    torch.testing.assert_close(_logits(peft), _logits(trained), rtol=1e-4, atol=1e-5)
    assert (_logits(peft) - before).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("adapter", "file", "name"),
    [
        ("lora", "adapter_model.safetensors", "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"),
        ("lora", "longspan.safetensors", "model.embed_tokens.weight"),
        ("none", "model.safetensors", "model.layers.0.mlp.up_proj.weight"),
    ],
)
def test_missing_tensor_is_refused_by_name(
    adapter: str, file: str, name: str, make: Make, cache: Path, tmp_path: Path
) -> None:
    recipe = make(**({"adapter": {"method": "none"}} if adapter == "none" else {}))
    final = run_quietly(recipe, cache).final
    from safetensors import safe_open

    with safe_open(final / file, "pt") as stream:
        metadata = stream.metadata()
    found = load_file(final / file)
    del found[name]
    save_file(found, final / file, metadata)
    about = json.loads((final / folders.MANIFEST).read_text())
    folders.write_manifest(final, {key: value for key, value in about.items() if key != "files"})
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        merge(final, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_merge_takes_the_newest_good_checkpoint_of_an_unfinished_run(make: Make, cache: Path, tmp_path: Path) -> None:
    recipe = make()
    with pytest.raises(Stop):
        run_quietly(recipe, cache, callbacks=[StopAfter(3)])
    out = merge(recipe["trainer"]["output"], tmp_path / "merged")
    assert json.loads((out / folders.MANIFEST).read_text())["merged_from"] == "checkpoint-2"


def test_merge_refuses_what_is_damaged_or_in_the_way(make: Make, cache: Path, tmp_path: Path) -> None:
    result = run_quietly(make(), cache)
    (tmp_path / "taken").mkdir()
    with pytest.raises(FileExistsError, match="taken exists already"):
        merge(result.output, tmp_path / "taken")
    assert merge(result.output, tmp_path / "taken", overwrite=True).is_dir()
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        merge(tmp_path / "nowhere", tmp_path / "merged")
    with pytest.raises(FileNotFoundError, match="no finished run and no checkpoint"):
        merge(tmp_path, tmp_path / "merged")
    (result.final / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(folders.BrokenFolderError, match=r"adapter_model\.safetensors has 0 bytes"):
        merge(result.output, tmp_path / "merged")


def test_codebooks_stay_behind(make: Make, cache: Path, tmp_path: Path) -> None:
    attention = {"train": {"method": "pq", "codewords": 4, "keep_ratio": 0.4}}
    out = merge(run_quietly(make(attention=attention), cache).output, tmp_path / "merged")
    assert not any("longspan" in name or "codebook" in name for name in tensors(out))


def test_a_routed_run_is_merged_only_when_asked(make: Make, cache: Path, tmp_path: Path) -> None:
    recipe = make(ffn={"train": {"method": "routed"}})
    result = run_quietly(recipe, cache, evaluate=True)
    with pytest.raises(ValueError, match=r"trained with ffn.train: routed \(2 of 4 blocks\).*--dense"):
        merge(result.output, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    said = CliRunner().invoke(app, ["merge", str(result.output), str(tmp_path / "merged"), "--dense"])
    assert said.exit_code == 0
    assert result.held_out_after is not None  # evaluation is dense, too
    assert f"held-out loss with all blocks: {result.held_out_after:.4f}" in said.output
    assert not any("router" in name for name in tensors(tmp_path / "merged"))
