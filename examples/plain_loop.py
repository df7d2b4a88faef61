"""A plain PyTorch loop on a patched model: adapters by PEFT, a fused optimizer, an adapter that plain PEFT loads.

python examples/plain_loop.py --model FOLDER_OR_HUB_ID --text FILE [FILE ...] --length 8192 --output adapter
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import longspan
from longspan.updates import FusedAdamW


def main(arguments: list[str] | None = None) -> list[float]:
    """Trains on rows of the text; the loss of every step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", nargs="+", type=Path, required=True)
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", required=True)
    given = parser.parse_args(arguments)

    model = AutoModelForCausalLM.from_pretrained(given.model)
    model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]))
    pattern = {"method": "s2", "groups": 4, "sinks": 4}
    print(longspan.patch(model, {"data": {"length": given.length}, "attention": {"train": pattern}}))

    tokenizer = AutoTokenizer.from_pretrained(given.model)
    text = "\n".join(path.read_text(encoding="utf-8") for path in given.text)
    tokens = torch.tensor(tokenizer(text)["input_ids"])
    rows = tokens[: len(tokens) // given.length * given.length].view(-1, 1, given.length)

    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    optimizer = FusedAdamW(trained, lr=5e-4, clip=1.0)
    losses = []
    model.train()
    for step in range(given.steps):
        row = rows[step % len(rows)]
        loss = model(input_ids=row, labels=row).loss
        loss.backward()
        optimizer.step()  # clips by itself
        optimizer.zero_grad()
        losses.append(loss.item())
        print(f"step {step}: loss {losses[-1]:.4f}")
    model.save_pretrained(given.output)
    return losses


if __name__ == "__main__":
    main()
