"""Arrows point one way: imports of the package and includes of csrc follow the layer diagram."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from tests.house.layers import CPP_LAYERS, PYTHON_LAYERS, cpp_violations, level, python_violations


def test_imports_follow_the_layers(root: Path) -> None:
    assert python_violations(root / "python" / "longspan") == []


def test_includes_follow_the_layers(root: Path) -> None:
    assert cpp_violations(root / "csrc") == []


def test_every_name_has_one_layer() -> None:
    names = [name for layer in PYTHON_LAYERS for name in layer]
    assert len(names) == len(set(names))
    assert level("_native") == 0
    assert level("cli") == len(PYTHON_LAYERS) - 1
    assert level("nothing") is None


def test_the_picture_shows_the_layers_in_their_order(root: Path) -> None:
    text = (root / "docs" / "figures" / "architecture.svg").read_text(encoding="utf-8")
    places = {name: int(y) for y, name in re.findall(r'class="name" x="\d+" y="(\d+)">([^<]+)<', text)}
    sources = {f"csrc/{name}" for name in CPP_LAYERS} - {"csrc/simt"}  # the emulation is part of no product
    assert places.keys() == {name for names in PYTHON_LAYERS for name in names} | sources
    rows = [{places[name] for name in names} for names in PYTHON_LAYERS]
    assert all(len(row) == 1 for row in rows)
    assert all(max(upper) < min(lower) for lower, upper in itertools.pairwise(rows))
    assert places["ops"] < places["csrc/ops"] == places["csrc/host"] < places["csrc/kernels"]


def written(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


BAD_PYTHON = [
    ("ops/attention.py", "from longspan.patch import patch\n", "ops must not import longspan.patch"),
    ("ops/attention.py", "from ..patch import patch\n", "ops must not import longspan.patch"),
    ("ops/attention.py", "def f():\n    import longspan.train.run\n", "ops must not import longspan.train"),
    ("ops/attention.py", "import longspan\nlongspan.patch.patch()\n", "ops must not import longspan.patch"),
    (
        "ops/attention.py",
        "import importlib\nimportlib.import_module('longspan.cli')\n",
        "ops must not import longspan.cli",
    ),
    ("tokens/lemo.py", "from longspan.attention import s2\n", "tokens must not import longspan.attention"),
    ("train/run.py", "from longspan.cli import main\n", "train must not import longspan.cli"),
    ("eval/passkey.py", "from longspan.train import train\n", "eval must not import longspan.train"),
    ("recipe/schema.py", "import transformers\n", "nothing below patch imports transformers"),
    ("adapters/lora.py", "import peft\n", "nothing below patch imports peft"),
    ("adapters/lora.py", "def f():\n    import transformers\n", "nothing below patch imports transformers"),
    ("train/run.py", "import os\nx = os.environ['A']\n", "only _native and cli read os.environ"),
    ("train/run.py", "from os import getenv\n", "only _native and cli read os.getenv"),
    ("data/build.py", "import sys\nprint(sys.argv)\n", "only _native and cli read sys.argv"),
    ("patch/loss.py", "import torch\ntorch.ops.longspan.x(1)\n", "only ops calls torch.ops.longspan"),
    ("helpers.py", "", "'helpers' is in no layer"),
]
GOOD_PYTHON = [
    ("cli/main.py", "import os\nfrom longspan.train import train\nos.environ.get('A')\n"),
    ("adapters/lora.py", "def f():\n    import peft\n"),
    ("patch/loss.py", "import transformers\nfrom longspan.ops import attention\nfrom longspan.patch import x\n"),
    ("ops/attention.py", "import torch\nfrom longspan import _native\ntorch.ops.longspan.x(1)\n"),
]


@pytest.mark.parametrize(("name", "text", "message"), BAD_PYTHON)
def test_a_wrong_import_is_found(tmp_path: Path, name: str, text: str, message: str) -> None:
    found = python_violations(written(tmp_path / "longspan", {name: text}))
    assert len(found) >= 1
    assert message in found[0]


@pytest.mark.parametrize(("name", "text"), GOOD_PYTHON)
def test_a_right_import_is_not(tmp_path: Path, name: str, text: str) -> None:
    assert python_violations(written(tmp_path / "longspan", {name: text})) == []


BAD_CPP = [
    ("kernels/a/a.cpp", "#include <torch/csrc/stable/tensor.h>", "only csrc/ops includes torch"),
    ("kernels/a/a.cpp", "#include <pybind11/numpy.h>", "only csrc/host and csrc/simt include pybind11"),
    ("kernels/a/a.cpp", "#  include <Python.h>", "Python is reached through pybind11"),
    ("kernels/a/a.cpp", '#include "ops/tensor.h"', "kernels include only kernels"),
    ("kernels/a/a.cpp", '#include "../../host/array.h"', "kernels include only kernels"),
    ("kernels/a/a.cu", '#include "simt/device.h"', "kernels include only kernels"),
    ("kernels/common/simt.h", '#include "simt/engine/machine.h"', "kernels include only kernels"),
    ("ops/a.cpp", '#include "simt/entry.h"', "ops must not include simt"),
    ("host/a.cpp", '#include "simt/entry.h"', "host must not include simt"),
    ("simt/a.cpp", '#include "host/array.h"', "simt must not include host"),
    ("simt/a.cpp", "#include <torch/csrc/stable/tensor.h>", "only csrc/ops includes torch"),
    ("ops/a.cpp", "#include <ATen/ATen.h>", "only torch's ABI-stable headers"),
    ("ops/a.cpp", "#include <torch/extension.h>", "only torch's ABI-stable headers"),
    ("ops/a.cpp", "#include <c10/util/BFloat16.h>", "only torch's ABI-stable headers"),
    ("ops/a.cpp", '#include "host/array.h"', "ops must not include host"),
    ("ops/a.cpp", "#include <cuda_runtime.h>", "only csrc/kernels and csrc/simt use the CUDA runtime"),
    ("host/a.cpp", "#include <torch/csrc/stable/tensor.h>", "only csrc/ops includes torch"),
    ("host/a.cpp", '#include "ops/tensor.h"', "host must not include ops"),
    ("extra/a.cpp", "", "'extra' is in no layer"),
]


@pytest.mark.parametrize(("name", "text", "message"), BAD_CPP)
def test_a_wrong_include_is_found(tmp_path: Path, name: str, text: str, message: str) -> None:
    found = cpp_violations(written(tmp_path / "csrc", {name: text + "\n"}))
    assert len(found) == 1
    assert message in found[0]


def test_right_includes_are_not(tmp_path: Path) -> None:
    files = {
        "kernels/a/a.h": "#include <cstdint>\n",
        "kernels/b/b.cpp": '#include "a/a.h"\n#include <vector>\n',
        "ops/a.cpp": '#include <torch/csrc/stable/tensor.h>\n#include "kernels/a/a.h"\n#include "ops/t.h"\n',
        "host/a.cpp": '#include <pybind11/numpy.h>\n#include "kernels/a/a.h"\n#include "host/t.h"\n',
        "kernels/common/simt.h": '#include <cuda_bf16.h>\n#include "simt/device.h"\n',
        "simt/e.cpp": '#include <pybind11/numpy.h>\n#include <cuda_runtime.h>\n#include "a/a.h"\n#include "simt/t.h"\n',
    }
    assert cpp_violations(written(tmp_path / "csrc", files)) == []
