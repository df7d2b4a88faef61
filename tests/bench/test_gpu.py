"""`make gpu` as far as it goes without a GPU: what it says, and what it would print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench import gpu
from bench.static.workloads import attention_workloads

ROW = gpu.Row("fwd causal, T=4096", "NVIDIA A100-SXM4-80GB", 0.9, 1.8, (0.51, 0.78))


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu._native, "built_with_cuda", lambda: False)
    assert gpu.main([]) == 2
    assert "longspan was built without CUDA kernels" in capsys.readouterr().err
    monkeypatch.setattr(gpu._native, "built_with_cuda", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert gpu.main(["--check"]) == 2
    assert "is a CPU build; install a CUDA build of torch" in capsys.readouterr().err
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--check"]) == 2
    assert "torch sees no GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100 SXM 80GB"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4080", None),
    ],
)
def test_the_datasheet_of_a_gpu(name: str, known: str | None) -> None:
    device = gpu.device_of(name)
    assert (device.name if device else None) == known


def test_patterns_are_those_of_the_page() -> None:
    kinds = {gpu.pattern_of(workload).kind for workload in attention_workloads()}
    assert kinds == {"full", "s2", "window"}


def test_rows_are_shown_and_appended(tmp_path: Path) -> None:
    assert "| 0.90        | 0.51-0.78    | 1.80           | 2.00 " in gpu.render([ROW])
    path = tmp_path / "records" / "gpu.jsonl"
    gpu.append([ROW], path)
    gpu.append([ROW], path)
    assert [json.loads(line)["ours"] for line in path.read_text().splitlines()] == [0.9, 0.9]
