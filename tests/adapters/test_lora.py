"""LoRA with trained embeddings and norms: what trains, what is saved, what is merged, what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

import longspan
from longspan import adapters
from longspan.adapters import LoraAdapter, NoAdapter
from longspan.nn.beside import beside_tensors

TINY = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ALL = ("embeddings", "norms")
FAMILIES: dict[str, tuple[str, str, dict[str, Any], tuple[str, ...]]] = {
    "llama_tied": (
        "LlamaConfig",
        "LlamaForCausalLM",
        {"intermediate_size": 96, "num_key_value_heads": 2, "tie_word_embeddings": True},
        ("q_proj", "k_proj", "v_proj", "o_proj"),
    ),
    "llama_untied": (
        "LlamaConfig",
        "LlamaForCausalLM",
        {"intermediate_size": 96, "num_key_value_heads": 2, "tie_word_embeddings": False},
        ("q_proj", "k_proj", "v_proj", "o_proj"),
    ),
    "gemma2": (
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {"intermediate_size": 96, "num_key_value_heads": 2, "head_dim": 16},
        ("q_proj", "v_proj"),
    ),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", {"intermediate_size": 96}, ("query_key_value", "dense")),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {}, ("c_attn",)),
}


def build(family: str = "llama_tied") -> Any:
    """A tiny random model, evaluation mode."""
    import transformers

    config_class, model_class, options, _ = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**TINY, **options)
    return getattr(transformers, model_class)(config).eval()


def config_for(family: str, **changes: Any) -> LoraAdapter:
    """Rank 4, embeddings and norms trained, unless told otherwise."""
    return LoraAdapter(**{"rank": 4, "targets": FAMILIES[family][3], "also_train": ALL, **changes})


def ids() -> Tensor:
    """Token ids [2, 24]."""
    return torch.randint(3, 96, (2, 24), generator=torch.Generator().manual_seed(0))


def train(model: Any, steps: int = 3) -> None:
    """A few large steps, so that every trained tensor moves."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=ids(), labels=ids()).loss.backward()
        optimizer.step()
    model.eval()


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    """Every family by name."""
    return request.param


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, Tensor]:
    """A saved adapter of the tied Llama with embeddings and norms, and the logits of the trained model."""
    model = adapters.attach(build(), config_for("llama_tied"))
    train(model)
    adapters.save(model, tmp_path)
    return tmp_path, model(ids()).logits


def test_what_trains(family: str) -> None:
    """Exactly LoRA's matrices, the input embedding and every norm; everything else stays bit for bit."""
    model = build(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wrapped = adapters.attach(model, config_for(family))
    train(wrapped)
    embedding = model.get_input_embeddings().weight
    tied = model.get_output_embeddings().weight is embedding
    assert tied == model.config.tie_word_embeddings
    for name, parameter in model.named_parameters():
        norm = any(part in name for part in ("norm", ".ln_"))
        expected = "lora_" in name or norm or parameter is embedding
        assert parameter.requires_grad == expected, name
        if "lora_" not in name:
            changed = not torch.equal(parameter, before[name.replace(".base_layer", "")])
            assert changed == expected, name


def test_tied_head_gets_the_gradient_of_both() -> None:
    """One tensor, and the sum of what two separate ones would get; no second copy anywhere."""
    tied, untied = build("llama_tied"), build("llama_untied")
    untied.load_state_dict(tied.state_dict())
    wrapped = adapters.attach(tied, config_for("llama_tied", also_train=("embeddings",)))
    untied.requires_grad_(True)
    wrapped(input_ids=ids(), labels=ids()).loss.backward()
    untied(input_ids=ids(), labels=ids()).loss.backward()
    both = untied.model.embed_tokens.weight.grad + untied.lm_head.weight.grad
    torch.testing.assert_close(tied.model.embed_tokens.weight.grad, both)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    added = sum(p.numel() for name, p in wrapped.named_parameters() if "lora_" in name)
    own = sum(p.numel() for p in build("llama_tied").parameters())
    assert sum(p.numel() for p in wrapped.parameters()) == own + added


def test_save_and_load(family: str, tmp_path: Path) -> None:
    """A fresh base model and a freshly attached one both become the trained model, bit for bit."""
    base = build(family)
    model = adapters.attach(copy.deepcopy(base), config_for(family))
    train(model)
    expected = model(ids()).logits
    adapters.save(model, tmp_path)
    assert {"adapter_config.json", "adapter_model.safetensors", "longspan.safetensors"} <= {
        path.name for path in tmp_path.iterdir()
    }
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    onto_base = adapters.load(copy.deepcopy(base), tmp_path)
    assert torch.equal(onto_base.eval()(ids()).logits, expected)
    attached = adapters.attach(copy.deepcopy(base), config_for(family))
    assert adapters.load(attached, tmp_path) is attached
    assert torch.equal(attached.eval()(ids()).logits, expected)
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for loaded in (onto_base, attached):
        assert {name for name, parameter in loaded.named_parameters() if parameter.requires_grad} == trains
    again = tmp_path / "again"
    adapters.save(onto_base, again)
    for name in ("adapter_model.safetensors", "longspan.safetensors"):
        first, second = load_file(tmp_path / name), load_file(again / name)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_plain_peft_loads_the_adapter(trained: tuple[Path, Tensor], recwarn: pytest.WarningsRecorder) -> None:
    """PEFT alone reads the folder without complaint; with our tensors copied in, it is the trained model."""
    folder, expected = trained
    model = PeftModel.from_pretrained(build(), folder).eval()
    assert not [str(warning.message) for warning in recwarn if "missing" in str(warning.message).lower()]
    assert not torch.allclose(model(ids()).logits, expected, atol=1e-3)
    model.get_base_model().load_state_dict(load_file(folder / "longspan.safetensors"), strict=False)
    assert torch.equal(model(ids()).logits, expected)


def test_merge(family: str, tmp_path: Path) -> None:
    """The merged model is a plain one: same classes, same scores, also after saving and loading."""
    from transformers import AutoModelForCausalLM

    base = build(family)
    keys = base.state_dict().keys()
    model = adapters.attach(base, config_for(family))
    train(model)
    expected = model(ids()).logits
    merged = adapters.merge(model)
    assert merged.state_dict().keys() == keys
    assert not [name for name, module in merged.named_modules() if "longspan" in str(vars(module).keys())]
    torch.testing.assert_close(merged(ids()).logits, expected, rtol=1e-4, atol=1e-5)
    merged.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(ids()).logits, merged(ids()).logits)
    assert (loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight) == (
        merged.get_output_embeddings().weight is merged.get_input_embeddings().weight
    )


def test_full_fine_tuning() -> None:
    model = build()
    model.requires_grad_(False)
    assert adapters.attach(model, NoAdapter()) is model
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_without_also_train_no_file_of_ours(tmp_path: Path) -> None:
    """Plain LoRA writes PEFT's files only, and a stale file of an earlier save is removed."""
    first = adapters.attach(build(), config_for("llama_tied"))
    adapters.save(first, tmp_path)
    adapters.save(adapters.attach(build(), config_for("llama_tied", also_train=())), tmp_path)
    assert not (tmp_path / "longspan.safetensors").exists()
    adapters.load(build(), tmp_path)


def test_config_reaches_peft(tmp_path: Path) -> None:
    config = config_for("llama_tied", rank=3, alpha=5.0, dropout=0.25, targets=("q_proj",), also_train=())
    adapters.save(adapters.attach(build(), config), tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (saved["r"], saved["lora_alpha"], saved["lora_dropout"]) == (3, 5, 0.25)
    assert saved["target_modules"] == ["q_proj"]
    assert not saved["modules_to_save"]


def damage(folder: Path, file: str, name: str, change: str) -> None:
    """Remove, add or reshape one tensor of a saved file."""
    from safetensors import safe_open

    with safe_open(folder / file, "pt") as stream:
        metadata = stream.metadata()
    tensors = load_file(folder / file)
    if change == "missing":
        del tensors[name]
    elif change == "unknown":
        tensors["stranger"] = torch.zeros(2)
    else:
        tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, folder / file, metadata)


EMBEDDING = ("longspan.safetensors", "model.embed_tokens.weight")
MATRIX = ("adapter_model.safetensors", "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight")
INCOMPLETE = "; the checkpoint is incomplete, loading it would give another model than was trained"


@pytest.mark.parametrize(
    ("file", "name", "change", "message"),
    [
        (*EMBEDDING, "missing", f"tensor {EMBEDDING[1]} is missing (1 in all){INCOMPLETE}"),
        (*EMBEDDING, "unknown", "tensor stranger is not part of this model (1 in all)"),
        (*EMBEDDING, "shape", f"tensor {EMBEDDING[1]} is [95, 64], the model's is [96, 64]"),
        (*MATRIX, "missing", f"tensor {MATRIX[1]} is missing (1 in all){INCOMPLETE}"),
        (*MATRIX, "unknown", "tensor stranger is not part of this model (1 in all)"),
        (*MATRIX, "shape", f"tensor {MATRIX[1]} is [3, 64], the model's is [4, 64]"),
    ],
)
def test_damaged_files_are_refused(
    trained: tuple[Path, Tensor], file: str, name: str, change: str, message: str
) -> None:
    folder, _ = trained
    damage(folder, file, name, change)
    model = build()
    before = model(ids()).logits
    with pytest.raises(ValueError) as caught:
        adapters.load(model, folder)
    assert str(caught.value) == f"{folder / file}: {message}"
    assert torch.equal(model(ids()).logits, before)
    assert not hasattr(model, "peft_config")


def test_lost_file_is_refused(trained: tuple[Path, Tensor]) -> None:
    """Without longspan.safetensors the adapter alone would give a poor model, silently."""
    folder, _ = trained
    (folder / "longspan.safetensors").unlink()
    with pytest.raises(ValueError) as caught:
        adapters.load(build(), folder)
    assert str(caught.value) == (
        f"{folder / 'longspan.safetensors'}: tensor model.embed_tokens.weight is missing (6 in all){INCOMPLETE}"
    )


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_missing_files_are_named(trained: tuple[Path, Tensor], name: str) -> None:
    folder, _ = trained
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError) as caught:
        adapters.load(build(), folder)
    assert str(caught.value) == f"{folder} holds no adapter: {name} is missing"


def test_refused_by_name(tmp_path: Path) -> None:
    attached = adapters.attach(build(), config_for("llama_tied"))
    cases = [
        (
            lambda: adapters.attach(build("gpt2"), LoraAdapter()),
            "adapter.targets: GPT2LMHeadModel has no module 'q_proj'; its linear modules are: c_attn, c_fc, c_proj, "
            "lm_head",
        ),
        (
            lambda: adapters.attach(build(), LoraAdapter(targets=("embed_tokens",), also_train=("embeddings",))),
            "adapter: model.embed_tokens.weight cannot both train in full (also_train) and be a target "
            "('embed_tokens')",
        ),
        (
            lambda: adapters.attach(attached, LoraAdapter()),
            "the model has a PEFT adapter already; merge it or load a fresh model before attaching one",
        ),
        (
            lambda: adapters.save(build(), tmp_path),
            "cannot save: LlamaForCausalLM has no adapter (longspan.adapters.attach adds one)",
        ),
        (
            lambda: adapters.merge(build()),
            "cannot merge: LlamaForCausalLM has no adapter (longspan.adapters.attach adds one)",
        ),
    ]
    for act, message in cases:
        with pytest.raises(ValueError) as caught:
            act()
        assert str(caught.value) == message


def _with_codebooks(model: Any) -> Any:
    """Attached, patched, and trained for a step, so that there are codewords."""
    model = adapters.attach(model, config_for("llama_tied"))
    section = {"train": {"method": "pq", "codewords": 4, "keep_ratio": 1.0, "sinks": 0}}
    longspan.patch(model, {"data": {"length": 24}, "attention": section})
    return model


def test_codebooks_are_saved_and_restored(tmp_path: Path) -> None:
    model = _with_codebooks(build())
    train(model, 1)
    kept = beside_tensors(model.get_base_model())
    assert any(name.endswith("longspan_codebook.weight") for name in kept)
    adapters.save(model, tmp_path)
    again = _with_codebooks(build())
    adapters.load(again, tmp_path)
    for name, tensor in beside_tensors(again.get_base_model()).items():
        assert torch.equal(tensor, kept[name]), name
    plain = adapters.load(build(), tmp_path)
    assert not beside_tensors(plain.get_base_model())
    found = load_file(tmp_path / "longspan.safetensors")
    del found[next(name for name in found if name.endswith("codebook.weight"))]
    save_file(found, tmp_path / "longspan.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"longspan_codebook.* is missing"):
        adapters.load(again, tmp_path)


def test_an_adapter_without_codebooks_begins_with_none(tmp_path: Path) -> None:
    model = adapters.attach(build(), config_for("llama_tied"))
    adapters.save(model, tmp_path)
    patched = _with_codebooks(build())
    adapters.load(patched, tmp_path)
    names = [name for name in beside_tensors(patched.get_base_model()) if name.endswith("fitted")]
    assert names
    assert not any(bool(beside_tensors(patched.get_base_model())[name]) for name in names)
