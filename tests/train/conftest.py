"""A tiny random Llama with a byte tokenizer in a folder, a small text file, and recipes over them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

VOCABULARY = 260


def write_tiny_model(folder: Path) -> Path:
    """Save a two-layer Llama (grouped heads, tied head) with a tokenizer of single bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: index for index, word in enumerate([*alphabet, "<s>", "</s>"])}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=words["<s>"],
        eos_token_id=words["</s>"],
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_text(path: Path, documents: int = 24) -> Path:
    """JSON Lines of sentences over a few words, of different lengths."""
    import json

    draw = random.Random(0)
    words = ["the", "long", "road", "of", "a", "small", "river", "runs", "under", "old", "stone", "and", "new", "light"]
    lines = []
    for number in range(documents):
        text = " ".join(draw.choice(words) for _ in range(8 + number % 7 * 5))
        lines.append(json.dumps({"text": f"{number} {text}."}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models run faster on one thread, and runs of different processes are compared bit for bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny model."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small training file."""
    return write_text(tmp_path_factory.mktemp("text") / "train.jsonl")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cache folder shared by the session's runs."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def make(tiny: Path, text: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """make(trainer={...}, adapter={...}, ...) -> a recipe as a dict; `trainer` adds to the defaults below."""

    def recipe(*, output: str = "run", trainer: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
        loop = {"steps": 4, "schedule": "linear", "warmup": 1, "save_every": 1, **(trainer or {})}
        return {
            "model": str(tiny),
            "seed": 3,
            "data": {"train": str(text), "held_out": 0.2, "length": 48},
            "attention": {"train": {"method": "s2", "groups": 2}},
            "adapter": {
                "method": "lora",
                "rank": 2,
                "alpha": 4,
                "dropout": 0.1,
                "also_train": ["embeddings", "norms"],
            },
            "update": {"engine": {"method": "adamw", "lr": 1e-2}},
            **changes,
            "trainer": {**loop, "output": str(tmp_path / output)},
        }

    return recipe
