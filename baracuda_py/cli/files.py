"""Where commands write: what cannot be written is refused before anything is measured for it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryFile

from baracuda_py.errors import InvalidProblem

__all__ = ["check_new", "make_folder"]


def make_folder(folder: Path) -> None:
    """Make a folder, with those that it is in, and see that files can be made in it; it may be there already.

    Raises:
        InvalidProblem: it is no folder, or not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InvalidProblem(
            str(folder), "a folder to write to must be writable", rule="--output",
            why=error.strerror or str(error), fix="Name another with --output, or make this one writable",
        ) from None  # fmt: skip


def check_new(paths: Iterable[Path], must: str) -> None:
    """InvalidProblem, saying `must`, if one of the files is there already."""
    for path in paths:
        if os.path.lexists(path):
            raise InvalidProblem(
                str(path), must, rule="--output", got="one that is there already",
                fix="Name another --output, or pass --replace to write over it",
            )  # fmt: skip
