"""One op = schema, fake, reference, kernels, autograd, pybind11 entry, laws, doc comment, bench row, docs page."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import longspan.ops
from longspan import _native
from longspan.ops._define import REGISTERED
from longspan.ops._in_place import without_grad
from longspan.report import report
from tests.house.checklist import declared_ops, errors_unsaid, missing_files, missing_registrations, mutates_lists_only

ROOT = Path(__file__).parents[2]
OPS = declared_ops(ROOT / "python" / "longspan" / "ops")


def test_every_registered_op_is_in_the_list() -> None:
    assert longspan.ops.attention
    assert set(OPS) == set(REGISTERED)
    assert len(OPS) >= 2


@pytest.mark.parametrize(("op", "family"), sorted(OPS.items()))
def test_op_is_complete(op: str, family: str) -> None:
    assert missing_registrations(op, set(OPS)) + missing_files(ROOT, op, family) == []


def test_report_shows_every_op_and_device() -> None:
    shown = report().ops
    assert set(shown) == set(OPS)
    for states in shown.values():
        assert states["cpu"] == "yes"
        assert states["cuda"] == ("yes" if _native.built_with_cuda() else "not in this build")


def test_every_op_says_what_it_raises() -> None:
    public = [getattr(longspan.ops, name) for name in longspan.ops.__all__]
    assert errors_unsaid(x for x in public if inspect.isfunction(x)) == []


def test_silence_on_errors_is_named() -> None:
    def silent() -> None:
        """It fails without a word."""

    assert errors_unsaid([silent, longspan.ops.glu]) == ["silent"]


@pytest.fixture
def probe_step_() -> Iterator[str]:
    """An op of our namespace that changes a list of parameters."""
    with torch.library._scoped_library("longspan", "FRAGMENT") as library:
        library.define("probe_step_(Tensor(a!)[] targets, Tensor scale) -> ()")
        yield "probe_step_"


def test_an_op_that_changes_lists_must_refuse_gradients(probe_step_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _native.has_kernel.cache_clear()

    def step(targets: list[torch.Tensor]) -> None: ...

    for function, missing in ((step, True), (without_grad(step), False)):
        monkeypatch.setattr(longspan.ops, probe_step_, function, raising=False)
        found = missing_registrations(probe_step_, {probe_step_})
        assert ("autograd: the public function is not decorated with ops._in_place.without_grad" in found) == missing


def test_schemas_that_change_lists_are_told_from_others() -> None:
    assert mutates_lists_only("step_(Tensor(a!)[] targets, Tensor(b!)[] copies, Tensor[] sources) -> ()")
    assert not mutates_lists_only("rope_(Tensor(a!) x, Tensor[] y) -> ()")
    assert not mutates_lists_only("mixed_(Tensor(a!)[] targets, Tensor(b!) x) -> ()")
    assert not mutates_lists_only("pure(Tensor[] x) -> Tensor")


@pytest.fixture
def bare_op() -> Iterator[str]:
    """An op of our namespace with a schema and nothing else."""
    with torch.library._scoped_library("longspan", "FRAGMENT") as library:
        library.define("checklist_probe(Tensor x) -> Tensor")
        yield "checklist_probe"


def test_missing_registrations_are_named(bare_op: str) -> None:
    _native.has_kernel.cache_clear()
    found = missing_registrations(bare_op, {bare_op})
    assert [line.split(":")[0] for line in found] == ["fake", "cpu", "autograd", "pybind11"]
    assert missing_registrations("never_declared", set()) == ["schema: torch does not know the op"]


def test_a_build_with_cuda_has_cuda_kernels(bare_op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _native.has_kernel.cache_clear()
    monkeypatch.setattr(_native, "built_with_cuda", lambda: True)
    assert "cuda: no kernel" in missing_registrations(bare_op, set())
    with torch.library._scoped_library("longspan", "IMPL") as library:
        library.impl(bare_op, lambda x: x, "CUDA")
        _native.has_kernel.cache_clear()
        assert "cuda: no kernel" not in missing_registrations(bare_op, set())
    _native.has_kernel.cache_clear()


def test_missing_files_are_named(tmp_path: Path) -> None:
    assert [line.split(":")[0] for line in missing_files(tmp_path, "norm_fwd", "norm")] == [
        "reference",
        "doc comment",
        "cuda",
        "cuda",
        "docs",
        "bench row",
        "laws",
        "laws",
    ]


def test_a_comment_elsewhere_is_not_a_doc_comment(tmp_path: Path) -> None:
    header = tmp_path / "csrc/kernels/norm/norm.h"
    header.parent.mkdir(parents=True)

    def flagged(text: str) -> bool:
        header.write_text(text)
        return any(line.startswith("doc comment") for line in missing_files(tmp_path, "norm_fwd", "norm"))

    assert not flagged("/// Forward.\n/// Two lines.\nvoid norm_fwd_cpu(const View<2>& x,\n                  int y);\n")
    assert flagged("void norm_fwd_cpu(const View<2>& x);\n")
    assert flagged("/// Something else.\nvoid other_cpu(int);\nvoid norm_fwd_cpu(int);\n")
    assert flagged("// Plain comment.\nvoid norm_fwd_cpu(int);\n")


def test_declarations_are_found(tmp_path: Path) -> None:
    (tmp_path / "norm.py").write_text('define("norm_fwd", "(Tensor x) -> Tensor", fake)\n')
    (tmp_path / "_define.py").write_text("def define(name, schema, fake): ...\n")
    assert declared_ops(tmp_path) == {"norm_fwd": "norm"}
