"""Linear position interpolation: the law of the method, composition, files, undo, refusals."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from longspan.positions import LinearInterpolation, NoRescaling, apply_positions

TINY = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 100,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {"num_key_value_heads": 2}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {"num_key_value_heads": 2}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {"num_key_value_heads": 2}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"num_key_value_heads": 2, "head_dim": 16}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {"num_key_value_heads": 2, "head_dim": 16}),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", {}),
    "gemma3": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {
            "num_key_value_heads": 2,
            "head_dim": 16,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
}


def build(family: str, **changes: Any) -> Any:
    """A tiny random model, evaluation mode."""
    import transformers

    config_class, model_class, options = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**{**TINY, **options, **changes})
    model = getattr(transformers, model_class)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
    return model.eval()


def ids(length: int = 40) -> torch.Tensor:
    """Token ids [2, T]."""
    return torch.randint(3, 96, (2, length), generator=torch.Generator().manual_seed(1))


def config_of(rope: dict[str, Any] | None = None) -> Any:
    """A Llama config, with rope parameters if given."""
    from transformers import LlamaConfig

    return LlamaConfig(**TINY, **({"rope_parameters": rope} if rope else {}))


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "gemma3"])
def test_stretched_positions_score_as_the_original(family: str) -> None:
    """Position f * m of the stretched model has the angle of position m: the logits are the same."""
    model = build(family)
    positions = torch.arange(40)[None]
    expected = model(ids(), position_ids=positions, use_cache=False).logits
    apply_positions(model, LinearInterpolation(factor=4.0))
    # Every fourth position: not a document per token only because all rows are one document to the cache.
    given = model(ids(), position_ids=4 * positions, attention_mask=torch.ones(2, 40)).logits
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_plain_transformers_loads_it(family: str, tmp_path: Path) -> None:
    """A built model, a config before building and a saved model agree bit for bit."""
    from transformers import AutoModelForCausalLM

    model = build(family)
    before = model(ids()).logits
    applied = apply_positions(model, LinearInterpolation(factor=2.5))
    stretched = model(ids()).logits
    assert not torch.allclose(stretched, before, atol=1e-3)
    assert applied.max_position_embeddings == model.config.max_position_embeddings == 250
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(ids()).logits, stretched)
    config = copy.deepcopy(build(family).config)
    apply_positions(config, LinearInterpolation(factor=2.5))
    rebuilt = type(model)(config).eval()
    rebuilt.load_state_dict(model.state_dict())
    assert torch.equal(rebuilt(ids()).logits, stretched)


def test_factors_multiply() -> None:
    """8, then 2, is 16: from the config's own factor, and when applied one after the other."""
    linear = {"rope_type": "linear", "factor": 8.0, "rope_theta": 10000.0}
    config = config_of(linear)
    applied = apply_positions(config, LinearInterpolation(factor=2.0))
    assert applied.rope_parameters == config.rope_parameters == {**linear, "factor": 16.0}
    assert config.max_position_embeddings == 200
    apply_positions(config, LinearInterpolation(factor=1.5))
    assert config.rope_parameters["factor"] == 24.0
    assert config.max_position_embeddings == 300
    assert linear["factor"] == 8.0


def test_factor_one_is_the_model() -> None:
    model = build("llama")
    before = model(ids()).logits
    apply_positions(model, LinearInterpolation(factor=1.0))
    assert torch.equal(model(ids()).logits, before)
    assert model.config.max_position_embeddings == 100


def test_local_layers_keep_their_angles() -> None:
    """Where layers behind a window have angles of their own, only the others are stretched."""
    model = build("gemma3")
    before = copy.deepcopy(model.config.rope_parameters)
    apply_positions(model, LinearInterpolation(factor=2.0))
    after = model.config.rope_parameters
    assert after["sliding_attention"] == before["sliding_attention"]
    assert after["full_attention"] == {**before["full_attention"], "rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_undo_is_exact(family: str) -> None:
    model = build(family)
    before, config = model(ids()).logits, model.config.to_dict()
    attributes = {name: sorted(module.__dict__) for name, module in model.named_modules()}
    applied = apply_positions(model, LinearInterpolation(factor=3.0))
    applied.undo()
    applied.undo()
    assert torch.equal(model(ids()).logits, before)
    assert model.config.to_dict() == config
    assert attributes == {name: sorted(module.__dict__) for name, module in model.named_modules()}


def test_none_changes_nothing() -> None:
    config = config_of()
    before = config.to_dict()
    applied = apply_positions(config, NoRescaling())
    assert applied.rope_parameters is None
    assert config.to_dict() == before


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 50,
    "rope_theta": 10000.0,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 25, "rope_theta": 10000.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}


@pytest.mark.parametrize("rope", [LLAMA3, YARN, DYNAMIC], ids=lambda rope: rope["rope_type"])
def test_other_rope_types_are_refused(rope: dict[str, Any]) -> None:
    config = config_of(dict(rope))
    before = config.to_dict()
    with pytest.raises(ValueError) as caught:
        apply_positions(config, LinearInterpolation(factor=2.0))
    assert str(caught.value) == (
        f"positions method 'linear' does not compose with the model's rope type '{rope['rope_type']}'; it composes "
        "with 'default' and 'linear'; set positions: {method: none}"
    )
    assert config.to_dict() == before


def test_models_without_rotary_positions_are_refused() -> None:
    from transformers import GPT2Config

    with pytest.raises(ValueError) as caught:
        apply_positions(GPT2Config(), LinearInterpolation(factor=2.0))
    assert str(caught.value) == (
        "GPT2Config has no rotary positions (rope_parameters), so positions method 'linear' does not apply; "
        "set positions: {method: none}"
    )


def test_configs_that_allow_other_types_only_are_refused() -> None:
    """Phi-3 accepts long-rope alone; found out now, not when the trained model is saved."""
    from transformers import Phi3Config

    config = Phi3Config(**{**TINY, "num_key_value_heads": 2})
    before = config.to_dict()
    with pytest.raises(ValueError, match="Phi3Config does not accept positions method 'linear': "):
        apply_positions(config, LinearInterpolation(factor=2.0))
    assert config.to_dict() == before
