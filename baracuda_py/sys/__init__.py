"""The compiled kernels: PTX modules and what their manifests say, read lazily from package data.

A module is one file `src/<family>/<op>/<arch>[_<part>].cu`, compiled to
`ptx/<arch>/<family>.<op>[.<part>].ptx` with a manifest `.json` beside it.
Both are committed; `python -m baracuda_py.sys.build` writes them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache, cached_property
from importlib.resources import files
from importlib.resources.abc import Traversable
from types import MappingProxyType
from typing import Any, TypeVar

from attrs import field, frozen

__all__ = ["Capability", "Entry", "PtxModule", "Resources", "module", "modules", "parse_arch"]

Capability = tuple[int, int]
"""A compute capability, `(major, minor)`."""

Key = TypeVar("Key")
Value = TypeVar("Value")


def parse_arch(arch: str) -> Capability:
    """The compute capability of `sm_80`, `sm80` or `sm_90a`. Raises ValueError for anything else."""
    digits = arch.removeprefix("sm").removeprefix("_").removesuffix("a")
    if not arch.startswith("sm") or not digits.isdecimal() or len(digits) < 2:
        raise ValueError(f"{arch!r} is no architecture: write it like sm_80 or sm_90a")
    return int(digits[:-1]), int(digits[-1])


@frozen
class Resources:
    """What ptxas gave one kernel on one architecture; a driver's compiler may differ by a few registers."""

    registers: int
    """Registers a thread."""
    shared_nbytes: int
    """Static shared memory a block; dynamic shared memory comes on top."""
    stack_nbytes: int
    """Local memory a thread: arrays that could not be kept in registers, and spills."""
    spill_store_nbytes: int
    spill_load_nbytes: int


@frozen
class Entry:
    """One kernel of a module.

    Attributes:
        name: its symbol.
        parameter_nbytes: size of each parameter, in order.
        max_threads: threads a block that the kernel was compiled for, or None when it declares no bound.
        resources: by compute capability.
        cluster: thread blocks along x that run as a cluster; every grid's x is a multiple of it.
    """

    name: str
    parameter_nbytes: tuple[int, ...]
    max_threads: int | None
    resources: Mapping[Capability, Resources] = field(hash=False)
    cluster: int = 1


@frozen(slots=False)
class PtxModule:
    """One PTX file and its manifest.

    Attributes:
        name: `<family>.<op>` or `<family>.<op>.<part>`.
        arch: the architecture it was compiled for, as the file name says it: `sm80`, `sm90a`.
        sha256: of the PTX, hexadecimal.
        isa: PTX ISA version, `(major, minor)`; a driver older than it refuses the file.
        entries: kernels by symbol.
        constants: integers that the source shares with Python (`BARACUDA_CONSTANT`), by name.
        serves: compute capabilities it was assembled for when it was built, ascending.
        assembled_only: those of `serves` on which no GPU has run it yet.
    """

    name: str
    arch: str
    sha256: str
    isa: tuple[int, int]
    entries: Mapping[str, Entry] = field(eq=False, repr=False)
    constants: Mapping[str, int] = field(eq=False, repr=False)
    serves: tuple[Capability, ...] = field(eq=False)
    assembled_only: tuple[Capability, ...] = field(eq=False)
    _source: Traversable = field(eq=False, repr=False)

    @cached_property
    def ptx(self) -> bytes:
        """The PTX text. Raises ValueError when it is not the text that the manifest describes."""
        text = self._source.read_bytes()
        if hashlib.sha256(text).hexdigest() != self.sha256:
            raise ValueError(
                f"{self.arch}/{self.name}.ptx differs from its manifest. Reinstall baracuda_py, "
                "or run python -m baracuda_py.sys.build in a checkout."
            )
        return text

    def entry(self, name: str) -> Entry:
        """The kernel with this symbol. Raises LookupError, naming those that exist."""
        return _find(self.entries, name, f"module {self.name} ({self.arch}) has no kernel")

    def constant(self, name: str) -> int:
        """The shared constant with this name. Raises LookupError, naming those that exist."""
        return _find(self.constants, name, f"module {self.name} ({self.arch}) has no constant")

    def loads_on(self, capability: Capability) -> bool:
        """Whether a GPU of this capability can load it: its own and every later one, or, for an architecture-
        specific target such as sm90a, its own only."""
        own = parse_arch(self.arch)
        return capability == own if self.arch.endswith("a") else capability >= own


def module(name: str, arch: str) -> PtxModule:
    """The module `<family>.<op>[.<part>]` for `arch`, say `sm80`. Raises LookupError, naming all."""
    return _find(_modules(), (name, arch), "there is no PTX module")


def modules() -> tuple[PtxModule, ...]:
    """Every module, sorted by name, then architecture."""
    return tuple(_modules().values())


def _find(mapping: Mapping[Key, Value], key: Key, complaint: str) -> Value:
    try:
        return mapping[key]
    except KeyError:
        known = ", ".join(str(name) for name in mapping) or "none"
        raise LookupError(f"{complaint} {key!r}; there are: {known}") from None


@cache
def _modules() -> Mapping[tuple[str, str], PtxModule]:
    root = files(__package__) / "ptx"
    found = []
    for folder in root.iterdir() if root.is_dir() else ():
        found += [_read(path, folder) for path in folder.iterdir() if path.name.endswith(".json")]
    found.sort(key=lambda one: (one.name, parse_arch(one.arch), one.arch))
    return MappingProxyType({(one.name, one.arch): one for one in found})


def _read(path: Traversable, folder: Traversable) -> PtxModule:
    manifest = json.loads(path.read_text("utf-8"))
    entries = {name: _entry(name, facts) for name, facts in manifest["entries"].items()}
    major, minor = manifest["isa"].split(".")
    return PtxModule(
        name=manifest["module"],
        arch=manifest["arch"],
        sha256=manifest["ptx_sha256"],
        isa=(int(major), int(minor)),
        entries=MappingProxyType(entries),
        constants=MappingProxyType(manifest["constants"]),
        serves=tuple(parse_arch(arch) for arch in manifest["serves"]),
        assembled_only=tuple(parse_arch(arch) for arch in manifest["assembled_only"]),
        source=folder / (path.name.removesuffix(".json") + ".ptx"),
    )


def _entry(name: str, facts: Mapping[str, Any]) -> Entry:
    resources = {parse_arch(arch): Resources(**numbers) for arch, numbers in facts["resources"].items()}
    return Entry(
        name=name,
        parameter_nbytes=tuple(facts["parameter_nbytes"]),
        max_threads=facts["max_threads"],
        resources=MappingProxyType(resources),
        cluster=facts.get("cluster", 1),
    )
