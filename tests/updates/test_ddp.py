"""Two processes of DistributedDataParallel step alike, and as one process with both halves of the batch."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from longspan.updates import FusedAdamW, GradientClip, GradientMaskAdamW

MAKERS: dict[str, Any] = {
    "gradient masks": lambda m: GradientMaskAdamW(m.named_parameters(), 1e-2, 0.3, "freeze", clip=0.5),
    "components": lambda m: FusedAdamW(m.named_parameters(), 1e-2, clip=GradientClip(0.1, "tensor")),
}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 40), nn.Tanh(), nn.Linear(40, 3))


def batch(step: int) -> torch.Tensor:
    return torch.randn(8, 12, generator=torch.Generator().manual_seed(step))


def train(model: nn.Module, optimizer: Any, rows: slice) -> None:
    for step in range(4):
        optimizer.zero_grad()
        model(batch(step)[rows]).square().mean().backward()
        optimizer.step()


def worker(rank: int, folder: str, name: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = net()
    parallel = nn.parallel.DistributedDataParallel(model)
    train(parallel, MAKERS[name](model), slice(4 * rank, 4 * rank + 4))
    torch.save(model.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", MAKERS)
def test_ranks_agree_bit_for_bit_and_with_one_process(name: str, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=worker, args=(rank, str(tmp_path), name)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    alone = net()
    train(alone, MAKERS[name](alone), slice(0, 8))
    for key, value in alone.state_dict().items():
        assert torch.equal(one[key], two[key])
        torch.testing.assert_close(one[key], value, rtol=1e-4, atol=1e-5)
