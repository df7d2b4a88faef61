"""The command line parses, calls and prints; a user's mistake is one line and exit code 2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import longspan
from longspan.cli import checkout
from longspan.cli.evaluate import parse_lengths
from longspan.cli.main import app
from longspan.cli.train import parse_changes

runner = CliRunner()


def run(*arguments: str) -> Any:
    return runner.invoke(app, list(arguments))


def flat(text: str) -> str:
    """Text without the line breaks that the width of the terminal puts in."""
    return " ".join(text.split())


@pytest.fixture
def small_model(tmp_path: Path, chat_tokenizer: Any) -> str:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(chat_tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    chat_tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Stands in for training; keeps the calls."""
    from longspan.train import run as module

    made: list[Any] = []

    def fake(recipe: Any, **options: Any) -> module.TrainResult:
        made.append((recipe, options))
        steps = recipe.trainer.steps
        return module.TrainResult(
            output=tmp_path,
            final=tmp_path / "final",
            steps=steps,
            first_step=1,
            losses=[2.5] * steps,
            grad_norms=[1.0] * steps,
            seconds=[1.0] * steps,
            tokens_per_second=123.4,
            peak_memory=3_210_000_000,
            peak_cuda=None,
            trainable=1234567,
            held_out_before=3.0,
            held_out_after=2.0,
            resumed_from=None,
            broken=["checkpoint-3: model.safetensors is missing"],
        )

    monkeypatch.setattr(module, "train", fake)
    return made


def test_train_passes_the_recipe_on_and_prints_what_came_of_it(calls: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("attention: {train: {method: s2, groups: 2}}\n")
    done = run("train", str(path), "--set", "trainer.steps=3", "--set", "update.engine.lr=1e-3", "--evaluate", "5")
    assert done.exit_code == 0, done.output
    ((recipe, options),) = calls
    assert (recipe.trainer.steps, recipe.update.engine.lr, recipe.attention.train.groups) == (3, 1e-3, 2)
    assert options == {"resume": None, "evaluate": 5, "overwrite": False}
    text = flat(done.output)
    for part in (
        "s2 (groups 2, sinks 4)",
        "1,234,567",
        "123.4",
        "3.21 GB",
        "3.0000 before, 2.0000 after",
        "checkpoint-3",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("arguments", "resume"), [(["--resume"], True), (["--resume-from", "runs/a"], Path("runs/a")), ([], None)]
)
def test_resume_is_passed_on(calls: list[Any], tmp_path: Path, arguments: list[str], resume: Any) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: demo\n")
    assert run("train", str(path), *arguments).exit_code == 0
    assert calls[0][1]["resume"] == resume


def test_merge_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from longspan.train import merge

    monkeypatch.setattr(merge, "merge", lambda run, out, overwrite, dense: f"{run} {out} {overwrite} {dense}")
    done = run("merge", "runs/a", "out/b", "--overwrite")
    assert (done.exit_code, done.output) == (0, "merged into runs/a out/b True False\n")


def test_eval_perplexity_end_to_end(small_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # the token cache
    (tmp_path / "data.jsonl").write_text('{"text": "short"}\n' + json.dumps({"text": "the user asks " * 60}) + "\n")
    done = run(
        "eval", "--task", "perplexity", "--model", small_model, "--data", str(tmp_path / "data.jsonl"),
        "--lengths", "16,32", "--stride", "8", "--json", str(tmp_path / "new" / "out.json"),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    saved = json.loads((tmp_path / "new" / "out.json").read_text())
    assert {key: score["tokens"] for key, score in saved["results"].items()} == {"16": 31, "32": 31}
    assert saved["documents"] == 1
    for score in saved["results"].values():
        assert f"{score['loss']:.4f}" in done.output

    from transformers import AutoModelForCausalLM, AutoTokenizer

    from longspan.eval import perplexity

    ids = AutoTokenizer.from_pretrained(small_model)("the user asks " * 60)["input_ids"][:32]
    want = perplexity(AutoModelForCausalLM.from_pretrained(small_model), [ids], [16, 32], 8)
    assert saved["results"]["16"]["loss"] == pytest.approx(want[16]["loss"], rel=1e-5)


def test_eval_passkey_end_to_end(small_model: str) -> None:
    done = run("eval", "--task", "passkey", "--model", small_model, "--lengths", "400", "--trials", "2")
    assert done.exit_code == 0, done.output
    assert "0%" in done.output
    assert "2 trials per length" in flat(done.output)


def test_report_prints_the_environment() -> None:
    from longspan.report import text

    done = run("report")
    assert "longspan.train clips inside the step" in done.output
    assert done.exit_code == 0
    assert done.output.splitlines()[0] == text().splitlines()[0]


BAD: list[tuple[list[str], str]] = [
    (["train", "absent.yaml"], "error: there is no recipe absent.yaml\n"),
    (["train", "bad.yaml"], "error: bad.yaml: unknown key data.lenght; did you mean data.length?\n"),
    (
        ["train", "good.yaml", "--set", "trainer.steps"],
        "error: --set takes key=value, for example trainer.steps=10, not 'trainer.steps'\n",
    ),
    (
        ["train", "good.yaml", "--set", "trainer.stepz=1"],
        "error: recipe: unknown key trainer.stepz; did you mean trainer.steps?\n",
    ),
    (["merge", "runs/absent", "out"], "runs/absent"),
    (["eval", "--task", "perplexity", "--model", "./absent"], "absent"),
    (
        ["eval", "--task", "passkey", "--model", "demo", "--lengths", "1k,x"],
        "error: --lengths takes numbers of tokens such as 1024,2048 or 1k,2k, not '1k,x'\n",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(row[0])[:40] for row in BAD])
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text("data: {lenght: 16}\n")
    Path("good.yaml").write_text("model: demo\n")
    done = run(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, "one line, however narrow the terminal"
    assert done.stderr == message or message in done.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = run("--debug", "train", str(tmp_path / "absent.yaml"))
    assert isinstance(done.exception, FileNotFoundError)


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> str:
        raise KeyError("a defect")

    monkeypatch.setattr("longspan.report.text", broken)
    assert isinstance(run("report").exception, KeyError)


def test_lengths_and_changes_are_parsed() -> None:
    assert parse_lengths("2048, 1k,2K") == [1024, 2048]
    assert parse_changes(["a.b=1e-3", "c={method: s2}", "d=x=y", "e=[1, 2]", "f=null"]) == {
        "a.b": 1e-3,
        "c": {"method": "s2"},
        "d": "x=y",
        "e": [1, 2],
        "f": None,
    }


def test_bench_and_demo_run_the_checkout_and_pass_arguments_on(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "longspan"\n')
    (tmp_path / "bench").mkdir()
    for name in ("__init__", "__main__", "demo"):
        (tmp_path / "bench" / f"{name}.py").write_text(f"import sys; print('{name}', sys.argv[1:])\n")
    program = (
        "from pathlib import Path; from longspan.cli import checkout, main;"
        f"checkout.find_checkout = lambda: Path({str(tmp_path)!r}); main.app()"
    )
    for command, module in (("bench", "__main__"), ("demo", "demo")):
        line = [sys.executable, "-c", program, command, "--steps", "2", "--help"]
        done = subprocess.run(line, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == f"{module} ['--steps', '2', '--help']"


def test_an_installed_package_has_no_bench_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(longspan, "__file__", str(tmp_path / "site-packages" / "longspan" / "__init__.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="part of the source checkout, not of the installed package"):
        checkout.find_checkout()


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from longspan.cli.main import app;"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0;"
        "print(sorted({'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
