"""Patched models under DistributedDataParallel: two processes train as one does on all rows."""

from __future__ import annotations

import faulthandler
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch.nn.parallel import DistributedDataParallel

import longspan
from families import assert_all_as_good, build, gradients, recipe, tokens

PROCESSES = 2
DEADLINE = 240  # seconds


def model_with_adapters(recompute: str) -> Any:
    torch.manual_seed(0)
    model = get_peft_model(build("llama"), LoraConfig(r=4, target_modules=["q_proj", "o_proj", "up_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    longspan.patch(model, recipe(memory={"recompute": recompute}))
    return model.train()


def worker(rank: int, folder: str, recompute: str) -> None:
    """One process: its own row of the batch, gradients averaged by DDP, written by the first."""
    faulthandler.dump_traceback_later(DEADLINE, exit=True)  # a worker that hangs says where
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=PROCESSES)
    model = model_with_adapters(recompute)
    ids = tokens(PROCESSES, 30)[rank : rank + 1]
    parallel = DistributedDataParallel(model)  # has to live until the backward has ended
    parallel(input_ids=ids, labels=ids).loss.backward()
    if rank == 0:
        torch.save(gradients(model), Path(folder) / "gradients.pt")
    del parallel  # as the group's last owner it would wait for gloo's thread, holding the GIL that the thread waits for
    dist.destroy_process_group()


@pytest.mark.parametrize("recompute", ["none", "mlp+qkv"])
def test_two_processes_are_one(recompute: str, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=worker, args=(rank, str(tmp_path), recompute)) for rank in range(PROCESSES)]
    for process in workers:
        process.start()
    for process in workers:
        process.join(timeout=DEADLINE + 60)
    assert [process.exitcode for process in workers] == [0, 0]
    found = torch.load(tmp_path / "gradients.pt", weights_only=True)
    model, ids = model_with_adapters(recompute), tokens(PROCESSES, 30)
    model(input_ids=ids, labels=ids).loss.backward()  # rows have as many labels each, so the means agree
    alone = gradients(model)
    assert_all_as_good(found, alone, {name: value.double() for name, value in alone.items()})
