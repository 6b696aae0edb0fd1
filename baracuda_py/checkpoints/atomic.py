"""A folder that is there as a whole or not at all: written beside its place, and put there by one rename.

Whoever is killed while writing leaves the old folder as it was, and beside it `.<name>.saving-<random>`, which the next
writer of the same folder removes: a lock on that folder tells it from one that is still being written.

An old folder is exchanged for the new one in one step where the system can do that (Linux, macOS). Elsewhere it is
renamed first, so that for a moment there is none; if the writer is killed just then, the next one puts it back.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from baracuda_py.errors import CheckpointError

__all__ = ["new_folder"]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # Linux; macOS calls it RENAME_SWAP, with the same value
_SAVING, _REPLACED = "saving", "replaced"


@contextmanager
def new_folder(path: Path, *, overwrite: bool, kept: Callable[[str], bool]) -> Iterator[Path]:
    """An empty folder to fill, which becomes `path` if the block ends without an error.

    Args:
        path: absent, an empty folder, or, with `overwrite`, a folder that is to be replaced.
        overwrite: whether a folder that is not empty may be.
        kept: whether a file or folder of that name is taken over from the old folder, unless the block makes it.

    Raises:
        CheckpointError: `path` is a file, or a folder that is not empty and may not be replaced, or has nothing in it
            to replace.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    _restore(target)
    _remove_leftovers(target)
    _check(target, path, overwrite, kept)
    made, lock = _make(target)
    try:
        yield made
        if target.is_dir():
            shutil.copymode(target, made)
            for entry in sorted(target.iterdir()):
                if kept(entry.name) and not os.path.lexists(made / entry.name):
                    _keep(entry, made / entry.name)
        _sync_tree(made)
        _put(made, target)
        _sync(target.parent)
    finally:
        # The new folder if something failed; the old one, if there was one, after an exchange.
        shutil.rmtree(made, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _check(target: Path, path: Path, overwrite: bool, kept: Callable[[str], bool]) -> None:
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise CheckpointError(path, "a checkpoint must be written to a folder", rule="folder", got="a file")
    names = os.listdir(target)
    if names and not overwrite:
        raise CheckpointError(
            path, "a folder to write to must be empty or absent", rule="overwrite", got="files in it",
            fix="Pass overwrite=True (--overwrite) to replace the checkpoint in it",
        )  # fmt: skip
    if names and all(map(kept, names)):
        raise CheckpointError(
            path, "a folder that is overwritten must hold a checkpoint", rule="overwrite", got="other files",
            fix="Name another folder, or empty this one",
        )  # fmt: skip


def _beside(target: Path, kind: str) -> Path:
    return target.parent / f".{target.name}.{kind}-{secrets.token_hex(4)}"


def _found(target: Path, kind: str) -> list[Path]:
    # Not glob, for which a name may be a pattern.
    prefix = f".{target.name}.{kind}-"
    return [entry for entry in sorted(target.parent.iterdir()) if entry.name.startswith(prefix) and entry.is_dir()]


def _make(target: Path) -> tuple[Path, int | None]:
    """A new folder beside `target`, and the lock that says that somebody writes to it."""
    while True:
        made = _beside(target, _SAVING)
        made.mkdir()
        # Between making and locking it somebody may have taken it for a leftover.
        try:
            lock = _lock(made)
        except FileNotFoundError:
            continue
        if made.exists() and (lock is not None or not _has_locks()):
            return made, lock
        if lock is not None:
            os.close(lock)


def _has_locks() -> bool:
    return importlib.util.find_spec("fcntl") is not None


def _lock(folder: Path) -> int | None:
    """A descriptor whose lock ends with the process; None if somebody holds it, or the system has no such locks."""
    if not _has_locks():
        return None
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_leftovers(target: Path) -> None:
    for folder in [*_found(target, _SAVING), *_found(target, _REPLACED)]:
        try:
            lock = _lock(folder)
        except FileNotFoundError:
            continue  # somebody else has just removed it
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _restore(target: Path) -> None:
    """What a writer renamed, and was killed before it could put the new folder there."""
    replaced = _found(target, _REPLACED)
    if replaced and not os.path.lexists(target):
        os.rename(replaced[-1], target)


def _keep(old: Path, new: Path) -> None:
    """The same file in the new folder: a second name of it where the file system has such, else a copy."""
    if old.is_dir() and not old.is_symlink():
        shutil.copytree(old, new, symlinks=True, copy_function=_link)
    else:
        _link(old, new)


def _link(old: str | Path, new: str | Path) -> None:
    try:
        os.link(old, new, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.copy2(old, new, follow_symlinks=False)


def _put(made: Path, target: Path) -> None:
    """`made` at the place of `target`; afterwards `made` is the old folder, or nothing."""
    if not os.path.lexists(target):
        os.rename(made, target)
        return
    if _exchange(made, target):
        return
    replaced = _beside(target, _REPLACED)
    os.rename(target, replaced)
    try:
        os.rename(made, target)
    except OSError:
        os.rename(replaced, target)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step; False if the system or the file system cannot."""
    libc = ctypes.CDLL(None) if os.name == "posix" else None
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        status = libc.renameat2(  # type: ignore[union-attr]
            _AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), ctypes.c_uint(_RENAME_EXCHANGE)
        )
        return bool(status == 0)
    if sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        status = libc.renamex_np(os.fsencode(first), os.fsencode(second), ctypes.c_uint(_RENAME_EXCHANGE))  # type: ignore[union-attr]
        return bool(status == 0)
    return False


def _sync_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            if not os.path.islink(os.path.join(root, name)):
                _sync(Path(root, name))
        _sync(Path(root))


def _sync(path: Path) -> None:
    """On disk, not only on its way there."""
    if path.is_dir() and os.name != "posix":
        return  # folders cannot be opened
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
