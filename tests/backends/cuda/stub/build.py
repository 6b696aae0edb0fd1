"""Compiles the stub of libcuda."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


def compiler() -> str | None:
    """A C compiler, or None."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def build(folder: Path) -> None:
    """Compile libcuda.so.1 into `folder`, which then goes on LD_LIBRARY_PATH."""
    found = compiler()
    assert found, "no C compiler"
    subprocess.run(
        [found, "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread",
         "-Wl,-soname,libcuda.so.1", "-o", str(folder / "libcuda.so.1"), str(Path(__file__).with_name("libcuda.c"))],
        check=True,
    )  # fmt: skip
