"""Compiles the CUDA sources for the CPU with g++, once for each content, in a cache folder.

The sources and headers are read where they lie in the package. `cuda_shim` comes first on the include path: it stands
in for the toolkit's headers, and for those of `include/baracuda` that wrap what C++ cannot say.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from attrs import frozen

import baracuda_py.sys
from baracuda_py.sys.sources import Source, find_sources

__all__ = [
    "CORE_FILES",
    "EMULATED_ARCHITECTURES",
    "PACKAGE",
    "SHIM",
    "CompileError",
    "Unit",
    "compile_units",
    "files_read",
    "problem",
    "remove_unused",
    "sources",
]

PACKAGE = Path(baracuda_py.sys.__file__).parent
SHIM = Path(__file__).parents[1] / "cuda_shim"
CORE_FILES = (
    "emulator.cpp", "shared_memory.cpp", "mbarriers.cpp", "faults.cpp", "instructions.cpp", "checks.cpp",
    "sanitizer.cpp",
)  # fmt: skip
EMULATED_ARCHITECTURES = ("sm80", "sm90a")
_KEEP_S = 7 * 24 * 3600

_COMMON = ("-std=c++17", "-fPIC", "-fvisibility=hidden", f"-I{SHIM}")
_CORE_FLAGS = (*_COMMON, "-O3", "-fvisibility=default", "-fno-semantic-interposition", "-flto=auto")
_KERNEL_FLAGS = (
    *_COMMON,
    "-O1",
    "-include",
    str(SHIM / "cuda_shim.h"),
    "-fno-strict-aliasing",  # CUDA compilers let memory be read as another type
    "-fsanitize=alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero",
    "-fsanitize=thread",
    "-fno-sanitize-recover=all",
    "--param=tsan-instrument-func-entry-exit=0",
)


class CompileError(RuntimeError):
    """g++ refused a source; the text is its own."""


@frozen
class Unit:
    """One source to compile: its file, the kernels in it, and the folder of our headers."""

    path: Path
    entries: tuple[str, ...]
    include: Path = PACKAGE / "include"

    @property
    def text(self) -> str:
        """The translation unit: the source as it is, and a table of its kernels."""
        table = "".join(f"  EMULATED_ENTRY({name}),\n" for name in self.entries)
        return (
            f'#include "{self.path}"\n'
            'extern "C" __attribute__((visibility("default"))) const emulator::Entry emulated_entries[] = {\n'
            f"{table}}};\n"
        )

    @property
    def flags(self) -> tuple[str, ...]:
        """Compiler flags; the shim comes first on the include path."""
        return (*_KERNEL_FLAGS, f"-I{self.include}")

    @classmethod
    def of_source(cls, source: Source) -> Unit:
        """The unit of a source of the package, with the kernels that its manifest lists."""
        return cls(source.path, tuple(baracuda_py.sys.module(source.module, source.arch).entries))


def sources() -> list[Source]:
    """The sources that can be emulated: those for compute_80 and compute_90a."""
    return [source for source in find_sources(PACKAGE) if source.arch in EMULATED_ARCHITECTURES]


@cache
def problem() -> str:
    """Why this machine cannot emulate; empty when it can."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return "the emulator of the CUDA sources is written for Linux on x86-64"
    if shutil.which("g++") is None:
        return "the emulator of the CUDA sources needs g++"
    return ""


@cache
def _compiler() -> str:
    return subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout


def _key(folders: tuple[Path, ...], *parts: object) -> str:
    """A digest of what a library is made from: the compiler, all files in `folders`, and `parts`."""
    digest = hashlib.sha256(repr((_compiler(), *parts)).encode())
    for path in sorted(path for folder in folders for path in folder.rglob("*.*")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:24]


def _run(command: list[str], text: str | None = None) -> str:
    """What a command prints."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompileError(done.stderr or f"{command[0]} ended with {done.returncode}")
    return done.stdout


def _build(target: Path, command: list[str], text: str | None = None) -> Path:
    """Run a command whose output goes to the path that its `-o` gets: `target`, if it is not there yet."""
    if not _kept(target):
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder, target.name)
            _run([*command, "-o", str(made)], text)
            made.replace(target)  # another process may have done the same: either result serves
    return target


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """A block that no other process is in for this target: what several workers need is compiled once."""
    import fcntl  # of Unix

    path = target.with_suffix(".lock")
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _kept(target: Path) -> bool:
    """Whether a library is there; it is then marked as used."""
    if not target.exists():
        return False
    os.utime(target)
    return True


def remove_unused(folder: Path) -> None:
    """Remove what no run has used for a week."""
    for path in folder.glob("*.so") if folder.is_dir() else ():
        if time.time() - path.stat().st_mtime > _KEEP_S:
            path.unlink(missing_ok=True)


def compile_units(wanted: dict[str, Unit], folder: Path) -> dict[str, Path]:
    """The shared library of each unit, by the unit's name; `folder` keeps them. Raises CompileError."""
    folder.mkdir(parents=True, exist_ok=True)
    core_sources = [str(SHIM / name) for name in CORE_FILES]
    core = folder / f"core-{_key((SHIM,), _CORE_FLAGS)}.so"
    with _alone(core):
        _build(core, ["g++", *_CORE_FLAGS, "-shared", *core_sources])

    def one(name: str, unit: Unit) -> Path:
        text, flags = unit.text, unit.flags
        target = folder / f"{name}-{_key((SHIM, unit.include), core.name, flags, text, unit.path.read_bytes())}.so"
        # Linked apart: with -fsanitize the link would add libubsan, whose checks end the process.
        with _alone(target), tempfile.TemporaryDirectory(dir=folder) as scratch:
            if _kept(target):
                return target
            compiled = str(Path(scratch, "kernels.o"))
            _run(["g++", *flags, "-x", "c++", "-c", "-o", compiled, "-"], text)
            return _build(target, ["g++", "-shared", compiled, str(core), f"-Wl,-rpath,{folder}"])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = {name: pool.submit(one, name, unit) for name, unit in wanted.items()}
        return {name: future.result() for name, future in made.items()}


def files_read(unit: Unit) -> set[Path]:
    """Every file that compiling `unit` reads, system headers left out."""
    rule = _run(["g++", *unit.flags, "-x", "c++", "-MM", "-"], unit.text)
    return {Path(name).resolve() for name in rule.replace("\\\n", " ").split()[1:] if name != "-"}
