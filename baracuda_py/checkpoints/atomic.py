"""A folder that is there as a whole or not at all: written beside its place, and put there by one rename.

Whoever is killed while writing leaves the old folder as it was, and beside it `.<name>.saving-<random>`, which the next
writer of the same folder removes: a lock on that folder tells it from one that is still being written.

An old folder is exchanged for the new one in one step where the system can do that (Linux, macOS). Elsewhere it is
renamed first, so that for a moment there is none; if the writer is killed just then, the next one puts it back.

A mount point cannot be renamed, and whoever works in a folder would be left in a deleted one. If such a folder is
empty, it is filled where it is: what is finished is moved in file by file, and is complete when config.json is there,
which comes last. If it is not empty, it is not overwritten.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from baracuda_py.errors import CheckpointError

__all__ = ["new_folder"]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # Linux; macOS calls it RENAME_SWAP, with the same value
_SAVING, _REPLACED = "saving", "replaced"
_LAST = "config.json"
_MOUNTS = Path("/proc/self/mountinfo")  # Linux
_CURRENT, _MOUNTED = "the current folder", "a mount point"
_FIXES = {
    _CURRENT: "Run it from another folder, or write beside it",
    _MOUNTED: "Write to a folder beside it or in it",
}  # fmt: skip


@contextmanager
def new_folder(path: Path, *, overwrite: bool, replaced: Callable[[Path], Collection[str]]) -> Iterator[Path]:
    """An empty folder to fill, which becomes `path` if the block ends without an error.

    Args:
        path: absent, an empty folder, or, with `overwrite`, a folder that is to be replaced.
        overwrite: whether a folder that is not empty may be.
        replaced: the names in an old folder that are not taken over into the new one; none: it may not be replaced.

    Raises:
        CheckpointError: `path` is a file, or a folder that is not empty and may not be replaced, has nothing in it to
            replace, or is in use; or the block or the system could not write.
    """
    target = Path(os.path.realpath(path))
    with _writable(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        _restore(target)
        _remove_leftovers(target)
        in_place = _check(target, path, overwrite, replaced)
        made, lock = _make(target, target if in_place else target.parent)
        try:
            yield made
            if in_place:
                _fill(made, target, path)
            elif overwrite:
                _replace(made, target, replaced)
            else:
                _place(made, target, path)
        finally:
            # The new folder if something failed; the old one, if there was one, after an exchange.
            shutil.rmtree(made, ignore_errors=True)
            if lock is not None:
                os.close(lock)


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    """Errors of the file system become errors about `path`."""
    try:
        yield
    except BrokenPipeError:
        raise  # no file's, but that of whoever is told of progress
    except OSError as error:
        raise CheckpointError(path, "a folder to write to must be writable", rule="target", why=str(error)) from error


def _place(made: Path, target: Path, path: Path) -> None:
    """`made` at the place of `target`, which is absent or empty: in one step, which fails if it has been filled."""
    _sync_tree(made)
    try:
        if target.is_dir():
            shutil.copymode(target, made)
            if os.name != "posix":
                target.rmdir()
        os.rename(made, target)
    except OSError:
        _check_empty(os.listdir(target) if target.is_dir() else (), path)
        raise
    _sync(target.parent)


def _check_empty(names: Collection[str], path: Path) -> None:
    if names:
        got = ", ".join(sorted(names)[:3])
        raise CheckpointError(path, "a folder to write to must stay empty", rule="overwrite", got=got)


def _replace(made: Path, target: Path, replaced: Callable[[Path], Collection[str]]) -> None:
    """`made`, with what is kept of `target`, at the place of `target`."""
    if target.is_dir():
        shutil.copymode(target, made)
        old = replaced(target)
        for entry in sorted(target.iterdir()):
            if entry.name not in old and not os.path.lexists(made / entry.name):
                _keep(entry, made / entry.name)
    _sync_tree(made)
    _put(made, target)
    _sync(target.parent)


def _fill(made: Path, target: Path, path: Path) -> None:
    """What is in `made`, a folder in `target`, in `target` itself; nothing of it if that fails."""
    _check_empty({*os.listdir(target)} - {made.name}, path)
    _sync_tree(made)
    names = sorted(os.listdir(made), key=lambda name: (name == _LAST, name))
    try:
        for name in names:
            if name == _LAST:
                _sync(target)
            os.rename(made / name, target / name)
        _sync(target)
    except BaseException:
        for name in names:
            if not os.path.lexists(made / name):
                os.rename(target / name, made / name)
        raise


def _check(target: Path, path: Path, overwrite: bool, replaced: Callable[[Path], Collection[str]]) -> bool:
    """Whether `target` is to be filled where it is."""
    if not os.path.lexists(target):
        return False
    if not target.is_dir():
        raise CheckpointError(path, "a checkpoint must be written to a folder", rule="folder", got="a file")
    use = _use(target)
    names = os.listdir(target)
    if not names:
        return bool(use)
    if not overwrite:
        raise CheckpointError(
            path, "a folder to write to must be empty or absent", rule="overwrite", got="files in it",
            fix="Pass overwrite=True (--overwrite) to replace the checkpoint in it",
        )  # fmt: skip
    if not replaced(target):
        raise CheckpointError(
            path, "a folder that is overwritten must hold a checkpoint", rule="overwrite", got="other files",
            fix="Name another folder, or empty this one",
        )  # fmt: skip
    if use:
        raise CheckpointError(
            path, "a folder that is overwritten must not be in use", rule="overwrite", got=use,
            why="another folder takes its place", fix=_FIXES[use],
        )  # fmt: skip
    return False


def _use(target: Path) -> str:
    """What the folder is, or has in it, that keeps it from being exchanged for another; `""`: nothing."""
    try:
        current = Path.cwd()
    except FileNotFoundError:
        current = None
    if current is not None and current.is_relative_to(target):
        return _CURRENT
    if os.path.ismount(target) or any(mount.is_relative_to(target) for mount in _mounts()):
        return _MOUNTED
    return ""


def _mounts() -> list[Path]:
    """Mount points, where the system lists them: also those of folders of the same disk."""
    try:
        lines = _MOUNTS.read_bytes().splitlines()
    except OSError:
        return []
    points = [line.split(b" ")[4] for line in lines]
    # Spaces are written as \040.
    return [Path(os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda code: bytes((int(code[1], 8),)), one))) for one in points]


def _scratch(target: Path, kind: str, place: Path) -> Path:
    return place / f".{target.name}.{kind}-{secrets.token_hex(4)}"


def _found(target: Path, kind: str, place: Path) -> list[Path]:
    # Not glob, for which a name may be a pattern.
    prefix = f".{target.name}.{kind}-"
    return [entry for entry in sorted(place.iterdir()) if entry.name.startswith(prefix) and entry.is_dir()]


def _make(target: Path, place: Path) -> tuple[Path, int | None]:
    """A new folder for `target` in `place`, and the lock that says that somebody writes to it."""
    while True:
        made = _scratch(target, _SAVING, place)
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
    folders = [folder for kind in (_SAVING, _REPLACED) for folder in _found(target, kind, target.parent)]
    if target.is_dir():
        folders += _found(target, _SAVING, target)
    for folder in folders:
        try:
            lock = _lock(folder)
        except FileNotFoundError:
            continue  # somebody else has just removed it
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _restore(target: Path) -> None:
    """What a writer renamed, and was killed before it could put the new folder there."""
    replaced = _found(target, _REPLACED, target.parent)
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
    replaced = _scratch(target, _REPLACED, target.parent)
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
            if stat.S_ISREG(os.lstat(os.path.join(root, name)).st_mode):  # to open a pipe waits for who writes to it
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
