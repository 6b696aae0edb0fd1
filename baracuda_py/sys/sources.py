"""What the build reads off a CUDA source and its PTX: own headers, shared constants, directives, kernels."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PtxEntry", "Source", "SourceError", "find_sources", "ptx_entries", "ptx_isa", "ptx_paths"]


class SourceError(ValueError):
    """A source is not as the build needs it; the text says which line and what to write."""


@dataclass(frozen=True)
class Source:
    """One `src/<family>/<op>/<arch>[_<part>].cu` below `root`, the folder of this package."""

    root: Path
    path: Path

    def __post_init__(self) -> None:
        if not re.fullmatch(r"sm\d{2,3}a?(_\w+)?", self.path.stem) or len(self.path.relative_to(self.root).parts) != 4:
            raise SourceError(f"{self.label}: a source is named src/<family>/<op>/<arch>[_<part>].cu, like sm80.cu")

    @property
    def label(self) -> str:
        return self.path.relative_to(self.root).as_posix()

    @property
    def arch(self) -> str:
        return self.path.stem.partition("_")[0]

    @property
    def module(self) -> str:
        family, op = self.path.parent.parts[-2:]
        part = self.path.stem.partition("_")[2]
        return f"{family}.{op}.{part}" if part else f"{family}.{op}"

    def text(self) -> str:
        return _text(self.path)

    def own_files(self) -> dict[str, Path]:
        """The source and the headers of ours that it includes, directly or not, by path below `root`."""
        found: dict[str, Path] = {}
        pending = [self.path]
        while pending:
            path = pending.pop()
            label = path.relative_to(self.root).as_posix()
            if label in found:
                continue
            found[label] = path
            pending += self._included(path)
        return dict(sorted(found.items()))

    def constants(self) -> dict[str, int]:
        """Values of the `BARACUDA_CONSTANT(name, value);` lines in `own_files`, by name."""
        found: dict[str, int] = {}
        for label, path in self.own_files().items():
            for name, value in re.findall(
                r"^\s*BARACUDA_CONSTANT\(\s*(\w+)\s*,([^;]*)\)\s*;", _code(path), re.MULTILINE
            ):
                number = _literal(value, f"{label}: BARACUDA_CONSTANT({name}, {value.strip()})")
                if found.setdefault(name, number) != number:
                    raise SourceError(f"{label}: {name} is stated twice, as {found[name]} and as {number}")
        return dict(sorted(found.items()))

    def allowed_spills(self) -> dict[str, int]:
        """Bytes of local memory that `// baracuda: allow-spill <entry> <bytes>` lines allow, by entry."""
        return {entry: int(nbytes) for word, entry, nbytes in self._directives() if word == "allow-spill"}

    def not_run(self) -> set[str]:
        """Architectures on whose GPU it has not run yet, by `// baracuda: assembled-only <arch>` lines."""
        return {arch for word, arch, _ in self._directives() if word == "assembled-only"}

    def _directives(self) -> Iterator[tuple[str, str, str]]:
        for directive in re.findall(r"^\s*// baracuda:(.*)$", self.text(), re.MULTILINE):
            match directive.split():
                case ["allow-spill", entry, nbytes] if nbytes.isdecimal():
                    yield "allow-spill", entry, nbytes
                case ["assembled-only", arch] if re.fullmatch(r"sm_\d+", arch):
                    yield "assembled-only", arch, ""
                case [arch] if arch == f"arch={self.arch}":
                    pass
                case _:
                    raise SourceError(
                        f"{self.label}: cannot read '// baracuda:{directive}'; known are "
                        f"'allow-spill <entry> <bytes>', 'assembled-only <arch>' and 'arch={self.arch}'"
                    )

    def _included(self, includer: Path) -> Iterator[Path]:
        """Headers of ours that a file includes directly: a quoted name is ours, one in angle brackets may be."""
        for quote, name in re.findall(r'^\s*#\s*include\s*(["<])([^">]+)[">]', _text(includer), re.MULTILINE):
            for folder in (includer.parent, self.root / "include"):
                path = (folder / name).resolve()
                if path.is_relative_to(self.root) and path.is_file():
                    yield path
                    break
            else:
                if quote == '"':
                    raise SourceError(
                        f'{includer.relative_to(self.root)}: no header of ours is called "{name}"; '
                        f"write <{name}> if it is the CUDA toolkit's"
                    )


@dataclass(frozen=True)
class PtxEntry:
    """One `.visible .entry`: its symbol, each parameter's size in bytes, its declared threads a block, and blocks a
    cluster, along x."""

    name: str
    parameter_nbytes: tuple[int, ...]
    max_threads: int | None
    cluster: int = 1


def find_sources(root: Path) -> list[Source]:
    """Every source below `root`, by module name and architecture."""
    found = [Source(root, path) for path in (root / "src").rglob("*.cu")]
    return sorted(found, key=lambda one: (one.module, one.arch))


def ptx_entries(ptx: str) -> Iterator[PtxEntry]:
    """The kernels of a PTX text, in its order. Raises SourceError for clusters that are not along x."""
    for name, parameters, bounds in re.findall(r"\.entry (\w+)\((.*?)\)([^{]*)\{", ptx, re.DOTALL):
        threads = re.search(r"\.maxntid (\d+)(?:, (\d+))?(?:, (\d+))?", bounds)
        yield PtxEntry(
            name=name,
            parameter_nbytes=tuple(map(_parameter_nbytes, re.findall(r"\.param ([^\n]+)", parameters))),
            max_threads=_product(threads.groups("1")) if threads else None,
            cluster=_cluster(name, bounds),
        )


def ptx_isa(ptx: str) -> str:
    """The `.version` of a PTX text."""
    found = re.search(r"^\.version (\d+\.\d+)$", ptx, re.MULTILINE)
    if found is None:
        raise SourceError("the PTX has no .version line")
    return found[1]


def ptx_paths(ptx: str) -> list[str]:
    """Lines that tie a PTX text to the machine that compiled it: file and line tables, absolute paths."""
    # A path needs two components of letters, so that a comment such as /4 or a // never counts.
    tell = re.compile(r"^\s*\.(file|loc)\b|[\s\"'(=](/\w[\w.+-]*){2,}|\b[A-Za-z]:\\")
    return [line for line in ptx.splitlines() if tell.search(line)]


def _cluster(name: str, bounds: str) -> int:
    """Blocks of `.explicitcluster .reqnctapercluster 2, 1, 1`; 1 without it."""
    found = re.search(r"\.reqnctapercluster (\d+)(?:, (\d+))?(?:, (\d+))?", bounds)
    if found is None:
        return 1
    x, y, z = found.groups("1")
    if (y, z) != ("1", "1"):
        raise SourceError(f"{name}: a cluster has blocks along x only: write __cluster_dims__(n, 1, 1)")
    return int(x)


def _parameter_nbytes(declaration: str) -> int:
    """Size of `.u64 name`, `.u64 .ptr .align 1 name` or `.align 8 .b8 name[168]`."""
    kind = re.search(r"\.[busf](8|16|32|64)\b", declaration)
    if kind is None:
        raise SourceError(f"cannot read the PTX parameter {declaration!r}")
    array = re.search(r"\[(\d+)\]", declaration)
    return int(kind[1]) // 8 * (int(array[1]) if array else 1)


def _text(path: Path) -> str:
    return path.read_text("utf-8")


def _code(path: Path) -> str:
    """The text without comments."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", _text(path), flags=re.DOTALL)


def _literal(text: str, where: str) -> int:
    try:
        return int(text.strip(), 0)
    except ValueError:
        raise SourceError(f"{where}: the value must be an integer literal, so that Python reads the same") from None


def _product(numbers: tuple[str, ...]) -> int:
    result = 1
    for number in numbers:
        result *= int(number)
    return result
