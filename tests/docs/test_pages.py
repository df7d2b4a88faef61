"""Pages are true: their Python runs as it stands, their links lead somewhere, and the site holds every page."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bench.record import ROOT

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def blocks_of(page: Path) -> list[str]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def with_a_small_model(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the README's examples take for granted: a model behind a hub's name, and tensors."""
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes))
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda name: model)
    q, k, v = (torch.randn(1, heads, 8192, 16) for heads in (4, 2, 2))
    return {"q": q, "k": k, "v": v, "cu_seqlens": torch.tensor([0, 5000, 8192])}


NEEDS: dict[str, Callable[[pytest.MonkeyPatch], dict[str, Any]]] = dict.fromkeys(
    ("README.md", "quickstart.md"), with_a_small_model
)


@pytest.mark.usefixtures("own_methods")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page)], ids=lambda page: page.name)
def test_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks of a page, one after the other in one namespace."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": page.stem}
    if page.name in NEEDS:
        namespace |= NEEDS[page.name](monkeypatch)
    for number, block in enumerate(blocks_of(page)):
        exec(compile(block, f"{page.name}, block {number}", "exec", dont_inherit=True), namespace)


def anchors_of(page: Path) -> set[str]:
    """As GitHub and mkdocs make them of headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    broken = []
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors_of(target)):
            broken.append(link)
    assert not broken


def test_the_site_builds_without_a_warning(build: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = build
    assert done.returncode == 0, done.stderr
    assert (folder / "quickstart.html").is_file()


def test_the_site_has_every_page_once() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))

    def files(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [name for each in (entry.values() if isinstance(entry, dict) else entry) for name in files(each)]

    assert sorted(files(site["nav"])) == sorted(page.relative_to(DOCS).as_posix() for page in PAGES[1:])
