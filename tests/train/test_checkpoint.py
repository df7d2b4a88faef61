"""Laws: a broken checkpoint is named and the previous one used; a foreign one is refused; a full disk loses nothing."""

from __future__ import annotations

import errno
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from longspan import folders
from longspan.train import checkpoint
from longspan.train.run import TrainResult
from runs import assert_continues, assert_same_weights, run_quietly, staging_left, start_process

Make = Callable[..., dict[str, Any]]


@pytest.fixture
def finished(make: Make, cache: Path) -> tuple[dict[str, Any], TrainResult]:
    """A run of four steps whose checkpoints 3 and 4 are on disk."""
    recipe = make()
    return recipe, run_quietly(recipe, cache)


def _cut(folder: Path) -> str:
    os.truncate(folder / "optimizer.pt", 100)
    return "optimizer.pt has 100 bytes"


def _flip(folder: Path) -> str:
    path = folder / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return "adapter_model.safetensors has changed"


def _no_manifest(folder: Path) -> str:
    (folder / folders.MANIFEST).unlink()
    return "manifest.json is missing"


def _torn_manifest(folder: Path) -> str:
    os.truncate(folder / folders.MANIFEST, 60)
    return "manifest.json cannot be read"


def _lost_file(folder: Path) -> str:
    (folder / "rng_state.pth").unlink()
    return "rng_state.pth is missing"


def _added_file(folder: Path) -> str:
    (folder / "training_args.bin").write_bytes(pickle.dumps({}))
    return "training_args.bin is not listed"


def _listed_pickle(folder: Path) -> str:
    (folder / "extra.bin").write_bytes(pickle.dumps({}))
    _rewrite_manifest(folder)
    return "extra.bin is of a kind that is not loaded"


class _Payload:
    def __reduce__(self) -> Any:
        return os.mkdir, ("payload-was-run",)


def _code_in_optimizer(folder: Path) -> str:
    torch.save({"state": _Payload()}, folder / "optimizer.pt")
    _rewrite_manifest(folder)
    return "optimizer.pt is refused by a weights-only load"


def _no_optimizer(folder: Path) -> str:
    (folder / "optimizer.pt").unlink()
    _rewrite_manifest(folder)
    return "optimizer.pt is not part of it"


def _rewrite_manifest(folder: Path) -> None:
    about = json.loads((folder / folders.MANIFEST).read_text())
    folders.write_manifest(folder, {key: value for key, value in about.items() if key != "files"})


@pytest.mark.parametrize(
    "damage",
    [
        _cut,
        _flip,
        _no_manifest,
        _torn_manifest,
        _lost_file,
        _added_file,
        _listed_pickle,
        _code_in_optimizer,
        _no_optimizer,
    ],
)
def test_broken_newest_is_named_and_the_previous_used(
    damage: Callable[[Path], str],
    finished: tuple[dict[str, Any], TrainResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    run = finished[1].output
    told = damage(run / "checkpoint-4")
    found, broken = checkpoint.newest_good(run)
    assert found == run / "checkpoint-3"
    assert len(broken) == 1
    assert "checkpoint-4" in broken[0]
    assert told in broken[0]
    assert told in caplog.text
    with pytest.raises(folders.BrokenFolderError, match="checkpoint-4"):
        checkpoint.find(run / "checkpoint-4", run)
    assert not (tmp_path / "payload-was-run").exists()


def test_a_run_resumed_past_a_broken_checkpoint_replaces_it(
    finished: tuple[dict[str, Any], TrainResult], cache: Path
) -> None:
    recipe, whole = finished
    before = whole.output / "checkpoint-4"
    _cut(before)
    resumed = run_quietly(recipe, cache, resume=True)
    assert resumed.first_step == 4
    assert len(resumed.broken) == 1
    assert resumed.losses == whole.losses[3:]
    checkpoint.check(before)


def test_all_broken_and_none_at_all_are_errors(
    finished: tuple[dict[str, Any], TrainResult], make: Make, cache: Path
) -> None:
    recipe, whole = finished
    for path in checkpoint.list_all(whole.output):
        _cut(path)
    with pytest.raises(folders.BrokenFolderError, match=r"checkpoint-4.*checkpoint-3"):
        run_quietly(recipe, cache, resume=True)
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        run_quietly(make(output="nothing"), cache, resume=True)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        run_quietly(recipe, cache, resume=whole.output / "checkpoint-9")


def test_another_recipe_is_refused_by_its_keys(
    finished: tuple[dict[str, Any], TrainResult], make: Make, cache: Path
) -> None:
    found = finished[1].output / "checkpoint-4"
    other = make(
        output="other",
        seed=4,
        adapter={"method": "lora", "rank": 3, "also_train": []},
        trainer={"steps": 9, "save_every": 5, "log_every": 2},
    )
    with pytest.raises(ValueError, match="another recipe") as caught:
        run_quietly(other, cache, resume=found)
    for key in ("seed: 3 -> 4", "adapter.rank: 2 -> 3", "adapter.also_train", "adapter.dropout: 0.1 -> 0.0"):
        assert key in str(caught.value)
    for key in checkpoint.MAY_CHANGE:
        assert f"{key}:" not in str(caught.value)
    assert not (tmp := Path(other["trainer"]["output"]) / "final").exists(), tmp


def test_other_data_and_fewer_steps_are_refused(make: Make, cache: Path, text: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(text.read_bytes())
    data = {"train": str(copy), "held_out": 0.0, "length": 48}
    run_quietly(make(data=data), cache)
    with pytest.raises(ValueError, match=r"has made 4 steps already; trainer\.steps is 2"):
        run_quietly(make(data=data, trainer={"steps": 2}), cache, resume=True)
    copy.write_text(json.dumps({"text": "something else entirely " * 40}) + "\n")
    with pytest.raises(ValueError, match="the training data changed"):
        run_quietly(make(data=data, trainer={"steps": 6}), cache, resume=True)


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("owner", "name", "error"),
    [
        (torch, "save", FULL),
        (torch, "save", RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")),
        (folders, "write_manifest", FULL),
        (folders, "sync_tree", OSError(errno.EIO, "Input/output error")),
        (os, "rename", OSError(errno.EROFS, "Read-only file system")),
    ],
)
def test_disk_full_while_saving_leaves_the_previous_checkpoint(
    owner: Any, name: str, error: Exception, make: Make, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make(output="full")
    run = Path(recipe["trainer"]["output"])
    original = getattr(owner, name)

    def full(*args: Any, **kwargs: Any) -> Any:
        if (run / "checkpoint-2").exists():
            raise error
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, full)
    with pytest.raises(folders.SaveError) as caught:
        run_quietly(recipe, cache)
    monkeypatch.setattr(owner, name, original)
    assert "checkpoint-3" in str(caught.value)
    assert "checkpoint-2 is untouched" in str(caught.value)
    assert "MB free" in str(caught.value)
    if isinstance(error, OSError):
        assert caught.value.errno == error.errno
    assert [path.name for path in checkpoint.list_all(run)] == ["checkpoint-1", "checkpoint-2"]
    assert not staging_left(run)
    resumed = run_quietly(recipe, cache, resume=True)
    whole = run_quietly(make(output="whole"), cache)
    assert_continues(whole, resumed)


@pytest.mark.parametrize("place", ["below a file", "below /sys", "read-only"])
def test_a_folder_that_cannot_be_written_is_refused_before_the_model_loads(
    place: str, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    run = {"below a file": tmp_path / "file" / "run", "below /sys": Path("/sys/run"), "read-only": tmp_path / "run"}[
        place
    ]
    if place == "read-only":  # permissions do not bind root, who runs the tests in containers
        run.mkdir()
        original = Path.open

        def refuse(path: Path, mode: str = "r", **options: Any) -> Any:
            if path.parent == run and mode != "r":
                raise OSError(errno.EROFS, "Read-only file system")
            return original(path, mode, **options)

        monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr("longspan.train.run.load_model", None)
    with pytest.raises(folders.SaveError, match=f"cannot write in {run}: .*give a folder that can be written"):
        run_quietly({**make(), "trainer": {"steps": 1, "output": str(run)}}, tmp_path / "cache")
    assert {path.name for path in tmp_path.iterdir()} <= {"file", "run"}


def test_an_error_that_is_not_about_writing_stays_itself(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="mine"), folders.staged(tmp_path / "x", about={}):
        raise KeyError("mine")
    with pytest.raises(FileNotFoundError, match="mine"), folders.staged(tmp_path / "x", about={}):
        raise FileNotFoundError(errno.ENOENT, "mine")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_a_run_is_not_overwritten_unasked(
    finished: tuple[dict[str, Any], TrainResult], cache: Path
) -> None:
    recipe, whole = finished
    with pytest.raises(ValueError, match="holds a run already"):
        run_quietly(recipe, cache)
    again = run_quietly(recipe, cache, overwrite=True)
    assert again.losses == whole.losses
    assert_same_weights(again.final, whole.output / "checkpoint-4")


def _hold(folder: Path, ready: Path) -> None:
    import time

    with folders.locked(folder, wait=False, purpose="training"):
        ready.touch()
        time.sleep(60)


def test_two_processes_do_not_train_in_one_folder(make: Make, cache: Path, tmp_path: Path) -> None:
    recipe = make()
    process = start_process(_hold, Path(recipe["trainer"]["output"]), tmp_path / "ready")
    try:
        while not (tmp_path / "ready").exists():
            assert process.is_alive()
        with pytest.raises(folders.BusyError, match="another process is training"):
            run_quietly(recipe, cache)
    finally:
        process.kill()
        process.join()
    # The system dropped the dead process' lock.
    assert run_quietly(recipe, cache).steps == 4


def test_checkpoints_rotate_and_keep_what_was_asked(make: Make, cache: Path) -> None:
    result = run_quietly(make(trainer={"steps": 5}), cache, keep_checkpoints=3)
    assert [path.name for path in checkpoint.list_all(result.output)] == [
        "checkpoint-3",
        "checkpoint-4",
        "checkpoint-5",
    ]
    assert json.loads((result.output / "checkpoint-5" / folders.MANIFEST).read_text())["step"] == 5
    with pytest.raises(ValueError, match="keep_checkpoints is 0"):
        run_quietly(make(output="other"), cache, keep_checkpoints=0)
