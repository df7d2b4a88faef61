"""Folders that appear whole or not at all: staged, synced, hashed in a manifest, renamed into place."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
STAGING_PREFIX = ".staging-"
LOCK = ".lock"

# Below this the file system is called full when a writer (torch.save) hides the system's own error number.
_FULL_BELOW_BYTES = 1 << 20

# What the system says when a folder cannot be written; other OSErrors inside `staged` are about something else.
_WRITE_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
}


class BrokenFolderError(ValueError):
    """A folder does not hold what its manifest says; the message names the file and the difference."""


class SaveError(OSError):
    """A folder could not be written; nothing of it is left, and what was there before is untouched."""

    def __str__(self) -> str:
        return str(self.strerror)


class BusyError(OSError):
    """Another process holds the lock of a folder."""


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def files_in(folder: Path) -> list[str]:
    """Sorted relative paths (forward slashes) of all files below `folder` except the manifest."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return sorted(name for name in found if name != MANIFEST)


def write_manifest(folder: Path, about: Mapping[str, Any]) -> None:
    """Write `manifest.json`: `about` and, for every file, its size in bytes and SHA-256."""
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": hash_file(folder / name)} for name in files_in(folder)
    }
    (folder / MANIFEST).write_text(json.dumps({**about, "files": files}, indent=1) + "\n", encoding="utf-8")


def verify(folder: Path) -> dict[str, Any]:
    """Compare a folder with its manifest and return the manifest.

    Raises BrokenFolderError naming the first file that is missing, unknown, of another size or of other
    content.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        expected = dict(manifest["files"].items())
    except FileNotFoundError:
        raise BrokenFolderError(f"{folder}: {MANIFEST} is missing, so it was not written to its end") from None
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise BrokenFolderError(f"{folder}: {MANIFEST} cannot be read: {error}") from None
    present = files_in(folder)
    for name in present:
        if name not in expected:
            raise BrokenFolderError(f"{folder}: {name} is not listed in {MANIFEST}")
    for name, facts in expected.items():
        if name not in present:
            raise BrokenFolderError(f"{folder}: {name} is missing")
        size = (folder / name).stat().st_size
        if size != facts["bytes"]:
            raise BrokenFolderError(f"{folder}: {name} has {size} bytes, {facts['bytes']} were written")
        if hash_file(folder / name) != facts["sha256"]:
            raise BrokenFolderError(f"{folder}: {name} has changed since it was written (SHA-256 differs)")
    return manifest


def sync_path(path: Path) -> None:
    """Ask the system to put a file's or a directory's content on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """`sync_path` for every file and directory below `folder`, itself last."""
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync_path(Path(root, name))
        sync_path(Path(root))


def discard(folder: Path) -> None:
    """Remove a folder so that a kill half way leaves no half folder under its name."""
    doomed = _staging_name(folder)
    os.rename(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def clean_staging(parent: Path) -> None:
    """Remove what killed writers left in `parent`; call it only while holding that folder's lock."""
    for left in parent.glob(f"{STAGING_PREFIX}*"):
        shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def staged(final: Path, *, about: Mapping[str, Any], replace: bool = False, keep: str = "") -> Iterator[Path]:
    """Yield an empty staging folder beside `final`; on success it becomes `final` in one rename, synced to
    disk.

    A folder already at `final` raises FileExistsError, or is moved away when `replace` is set. Any error
    removes the staging folder; errors of writing are raised as SaveError with the system's error number, the
    free space and `keep`, a sentence that says what the user still has.
    """
    if final.exists() and not replace:
        raise FileExistsError(f"{final} exists already; choose another folder or remove it")
    _make(final.parent)
    staging = _staging_name(final)
    try:
        staging.mkdir()
        yield staging
        write_manifest(staging, about)
        sync_tree(staging)
        if final.exists():
            discard(final)
        os.rename(staging, final)
        sync_path(final.parent)
    except BaseException as error:
        free = shutil.disk_usage(final.parent).free
        shutil.rmtree(staging, ignore_errors=True)
        code = _write_error_number(error, free)
        if code is None:
            raise
        reason = os.strerror(code) if code else str(error)
        told = f"cannot save {final}: {reason}, {free / 1e6:.1f} MB free. Nothing half written is left. {keep}"
        raise SaveError(code, told.strip()) from error


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from None


def _unwritable(folder: Path, error: OSError) -> SaveError:
    return SaveError(error.errno, f"cannot write in {folder}: {error.strerror}; give a folder that can be written")


def _write_error_number(error: BaseException, free: int) -> int | None:
    """The errno of a failed write, 0 if the writer does not tell, None for any other error."""
    if isinstance(error, OSError):
        return error.errno if error.errno in _WRITE_ERRORS else None
    text = str(error)
    if "No space left on device" in text:
        return errno.ENOSPC
    # torch.save reports a short write as a RuntimeError about stream positions, without the system's reason.
    if isinstance(error, RuntimeError) and ("unexpected pos" in text or "PytorchStreamWriter" in text):
        return errno.ENOSPC if free < _FULL_BELOW_BYTES else 0
    return None


def _staging_name(final: Path) -> Path:
    return final.parent / f"{STAGING_PREFIX}{final.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool, purpose: str) -> Iterator[None]:
    """Hold `folder`'s lock; the system drops it when the process ends, however it ends.

    With `wait` a second process waits for the first, without it a BusyError says that `purpose` is under
    way. Raises SaveError where the folder cannot be made or written in.
    """
    _make(folder)
    with contextlib.ExitStack() as opened:
        try:
            handle = opened.enter_context((folder / LOCK).open("a"))
        except OSError as error:
            raise _unwritable(folder, error) from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise BusyError(f"another process is {purpose} in {folder}; wait or use another folder") from None
        yield


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file (text as UTF-8) so that it is old or new after a kill, never half: temporary file, sync, rename."""
    temporary = path.with_name(f"{STAGING_PREFIX}{path.name}-{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_path(path.parent)
