"""Every example runs on a small model with its unmodified client, and leaves what plain libraries load."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.trainer_utils import set_seed

import longspan

LENGTH = 64
TEXT = "".join(f"The sum of {i} and {i + 1} is {2 * i + 1}.\n" for i in range(200))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, chat_tokenizer: Any) -> Path:
    """The folder of a small model and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(chat_tokenizer), **sizes)).save_pretrained(folder)
    chat_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def run(root: Path, name: str, *arguments: object) -> Any:
    """The example's main, in this process."""
    specification = importlib.util.spec_from_file_location(f"example_{name}", root / "examples" / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    set_seed(0)
    return module.main([str(argument) for argument in arguments])


def stock_loss(model: Path, tokenizer: Any, adapter: Path | None = None) -> float:
    """The loss of rows of the text in plain transformers, with the adapter loaded by plain PEFT."""
    stock: Any = AutoModelForCausalLM.from_pretrained(model)
    if adapter is not None:
        stock = PeftModel.from_pretrained(stock, adapter)
    ids = torch.tensor(tokenizer(TEXT)["input_ids"][: 20 * LENGTH]).view(-1, LENGTH)
    with torch.no_grad():
        return float(stock.eval()(input_ids=ids, labels=ids).loss)


def test_plain_loop(root: Path, model: Path, text: Path, chat_tokenizer: Any, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    losses = run(
        root, "plain_loop", "--model", model, "--text", text, "--length", LENGTH, "--steps", 12, "--output", adapter
    )
    assert losses[-1] < losses[0]
    assert stock_loss(model, chat_tokenizer, adapter) < stock_loss(model, chat_tokenizer)


def test_transformers_trainer(root: Path, model: Path, text: Path, chat_tokenizer: Any, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    trainer = run(
        root, "hf_trainer", "--model", model, "--text", text, "--length", LENGTH, "--steps", 6, "--output", adapter
    )
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 6
    assert stock_loss(model, chat_tokenizer, adapter) < stock_loss(model, chat_tokenizer)


class Names(TorchDispatchMode):
    """Names of all ops that run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Notes the name."""
        self.seen.add(function.name())
        return function(*args, **(kwargs or {}))


def test_trl(root: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"What is {i} and {i + 1}?"},
                {"role": "assistant", "content": f"{2 * i + 1}."},
            ]
        }
        for i in range(60)
    ]
    messages = tmp_path / "messages.jsonl"
    messages.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    output = tmp_path / "run"
    given = ("--model", model, "--messages", messages, "--length", LENGTH, "--steps", 4, "--output", output)
    losses = []
    for patch in (lambda *_: "the stock model", longspan.patch):
        monkeypatch.setattr(longspan, "patch", patch)
        with Names() as names:
            trainer = run(root, "trl_sft", *given)
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        assert ("longspan::attention_fwd" in names.seen) == (len(losses) == 2)
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], abs=2e-3)
    before, after = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (model, output))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_two_processes_train_as_one(root: Path, model: Path, text: Path, tmp_path: Path) -> None:
    adapters = []
    for world in (1, 2):
        output = tmp_path / f"adapter_{world}"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
        given = ["--model", model, "--text", text, "--length", LENGTH, "--steps", 3, "--output", output]
        command = [*launcher, str(root / "examples" / "ddp.py"), *map(str, given)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        adapters.append(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), output).state_dict())
    one, two = adapters
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}")
