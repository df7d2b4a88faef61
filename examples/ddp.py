"""The plain loop on several processes: DistributedDataParallel averages the adapters' gradients.

torchrun --nproc-per-node 2 examples/ddp.py --model FOLDER_OR_HUB_ID --text FILE --length 8192 --output adapter
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, AutoTokenizer

import longspan
from longspan.updates import FusedAdamW


def main(arguments: list[str] | None = None) -> None:
    """Each step takes `--batch` rows, shared out among the processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", nargs="+", type=Path, required=True)
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--output", required=True)
    given = parser.parse_args(arguments)

    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)  # the same adapters everywhere
    model = AutoModelForCausalLM.from_pretrained(given.model)
    model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]))
    longspan.patch(model, {"data": {"length": given.length}})
    if torch.cuda.is_available():
        model = model.to(torch.device("cuda", rank % torch.cuda.device_count()))
    parallel = DistributedDataParallel(model)

    tokenizer = AutoTokenizer.from_pretrained(given.model)
    text = "\n".join(path.read_text(encoding="utf-8") for path in given.text)
    tokens = torch.tensor(tokenizer(text)["input_ids"])
    rows = tokens[: len(tokens) // given.length * given.length].view(-1, given.length)

    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    optimizer = FusedAdamW(trained, lr=5e-4, clip=1.0)  # gradients agree, so every process takes the same step
    parallel.train()
    for step in range(given.steps):
        numbers = torch.arange(step * given.batch, (step + 1) * given.batch) % len(rows)
        batch = rows[numbers[rank::world]].to(model.device)
        loss = parallel(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        dist.all_reduce(loss.detach_())
        if rank == 0:
            print(f"step {step}: loss {loss.item() / world:.4f}")
    if rank == 0:
        model.save_pretrained(given.output)
    del parallel  # before the process group it uses
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
