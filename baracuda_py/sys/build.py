"""Compile the CUDA sources to the committed PTX: `python -m baracuda_py.sys.build [--check] [MODULE ...]`.

Each `src/<family>/<op>/<arch>[_<part>].cu` becomes `ptx/<arch>/<family>.<op>[.<part>].ptx` and a manifest.
The bytes depend on the sources, the headers and the pinned toolchain only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from baracuda_py.sys.sources import Source, SourceError, find_sources, ptx_entries, ptx_isa, ptx_paths
from baracuda_py.sys.toolchain import CompileError, Toolchain, ToolchainError

__all__ = ["build_module", "main"]

ROOT = Path(__file__).parent

FLAGS = ("--std=c++17", "--fmad=true", "--ftz=false", "--prec-div=true", "--prec-sqrt=true")
"""Compiler flags besides the target and the include folders."""

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
"""What a portable module (`sm80`) is assembled for, from its own architecture up."""

RUN_ON_GPU: tuple[str, ...] = ("sm_90", "sm_90a")
"""Architectures whose GPU has run the kernels, but for sources that say `assembled-only`; the others are only known to
assemble."""

# NVRTC gives one of several outputs for a large source, by chance: 3 of 14 compilations of one of 2 MB of PTX were not
# the usual one. What differs is compiled again, unless so much does that it is the sources.
_REPEATS = 5
_FEW = 3


def build_module(source: Source, toolchain: Toolchain) -> tuple[bytes, bytes]:
    """PTX and manifest of one source. Raises CompileError or SourceError, also for local memory that the
    source does not declare with `// baracuda: allow-spill <entry> <bytes>`."""
    flags = [f"--gpu-architecture=compute_{source.arch.removeprefix('sm')}", *FLAGS]
    includes = [f"-I{folder}" for folder in (source.path.parent, source.root / "include", toolchain.include)]
    ptx = toolchain.compile(source.text(), source.label, flags + includes)
    text = ptx.decode("ascii")
    if f"V{toolchain.nvrtc_version}" not in text:
        raise ToolchainError(f"{source.label}: the PTX does not name NVRTC {toolchain.nvrtc_version}")
    if paths := ptx_paths(text):
        raise CompileError(f"{source.label}: the PTX embeds a path: {paths[0].strip()}")

    entries: dict[str, dict[str, Any]] = {
        entry.name: {
            "parameter_nbytes": entry.parameter_nbytes,
            "max_threads": entry.max_threads,
            **({"cluster": entry.cluster} if entry.cluster != 1 else {}),
            "resources": {},
        }
        for entry in ptx_entries(text)
    }
    allowed = source.allowed_spills()
    if unknown := sorted(allowed.keys() - entries.keys()):
        raise SourceError(f"{source.label}: allow-spill names {unknown[0]}, which is no entry point of it")
    serves = _architectures(source.arch)
    for arch in serves:
        for name, numbers in _resources(toolchain.assemble(ptx, arch)):
            _check_local_memory(source, name, arch, numbers, allowed.get(name, 0))
            entries[name]["resources"][arch] = numbers

    manifest = {
        "module": source.module,
        "arch": source.arch,
        "isa": ptx_isa(text),
        "nvrtc": toolchain.nvrtc_version,
        "ptxas": toolchain.ptxas_version,
        "flags": flags,
        "files": {label: _sha256(path.read_bytes()) for label, path in source.own_files().items()},
        "ptx_sha256": _sha256(ptx),
        "constants": source.constants(),
        "allowed_spills": allowed,
        "serves": serves,
        "assembled_only": [arch for arch in serves if arch not in RUN_ON_GPU or arch in source.not_run()],
        "entries": entries,
    }
    return ptx, _json(manifest)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 0; 1 when `--check` finds a difference or a source does not compile; 2 when
    the toolchain is not the pinned one."""
    options = _parser().parse_args(arguments)
    try:
        sources = [one for one in find_sources(ROOT) if _wanted(one, options.modules)]
        if not sources:
            print(f"no source matches {' '.join(options.modules)}", file=sys.stderr)
            return 1
        toolchain = Toolchain.find(options.toolchain)
        if options.check:
            with tempfile.TemporaryDirectory(prefix="baracuda-check-") as folder:
                failed = _build_all(sources, toolchain, Path(folder))
                for _ in range(_REPEATS):
                    again = [one for one in sources if any(_differences([one], Path(folder), options.output))]
                    if not 0 < len(again) <= _FEW:
                        break
                    failed |= _build_all(again, toolchain, Path(folder))
                findings = list(_differences(sources, Path(folder), options.output))
        else:
            failed = _build_all(sources, toolchain, options.output)
            findings = []
        findings += _orphans(options.output)
    except (ToolchainError, SourceError) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, ToolchainError) else 1
    for finding in findings:
        print(finding)
    if options.check and not (failed or findings):
        print(f"{len(sources)} modules are byte for byte what the sources give")
    return 1 if failed or (findings and options.check) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m baracuda_py.sys.build", description=__doc__)
    parser.add_argument(
        "modules",
        nargs="*",
        metavar="MODULE",
        help="names such as softmax.softmax or 'quantize.*'; all when none",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="rebuild elsewhere and compare byte for byte; 1 if anything differs",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=ROOT / "ptx",
        help="folder to write, or with --check to compare (default: the package's)",
    )
    parser.add_argument(
        "--toolchain",
        type=Path,
        help="site-packages folder with the pinned packages (default: found, or installed into the cache)",
    )
    return parser


def _build_all(sources: list[Source], toolchain: Toolchain, output: Path) -> bool:
    """Build into `output`, saying how far it is; whether any source failed."""
    failed = False
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        builds = [pool.submit(build_module, source, toolchain) for source in sources]
        for number, (source, build) in enumerate(zip(sources, builds, strict=True), 1):
            try:
                ptx, manifest = build.result()
            except (CompileError, SourceError) as error:
                print(error, file=sys.stderr)
                failed = True
                continue
            path = _ptx_path(source, output)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(ptx)
            path.with_name(f"{source.module}.json").write_bytes(manifest)
            print(f"[{number}/{len(sources)}] {source.arch} {source.module}", file=sys.stderr)
    return failed


def _differences(sources: list[Source], rebuilt: Path, committed: Path) -> Iterator[str]:
    for source in sources:
        for suffix in ("ptx", "json"):
            name = Path(source.arch, f"{source.module}.{suffix}")
            if not (rebuilt / name).exists():
                continue
            if not (committed / name).exists():
                yield f"{name}: not built yet"
            elif (rebuilt / name).read_bytes() != (committed / name).read_bytes():
                yield f"{name}: differs from what {source.label} gives"


def _orphans(output: Path) -> list[str]:
    known = {_ptx_path(source, output).with_suffix("") for source in find_sources(ROOT)}
    found = sorted(path for path in output.rglob("*.*") if path.suffix in (".ptx", ".json"))
    return [f"{path.relative_to(output)}: has no source" for path in found if path.with_suffix("") not in known]


def _ptx_path(source: Source, output: Path) -> Path:
    return output / source.arch / f"{source.module}.ptx"


def _wanted(source: Source, patterns: list[str]) -> bool:
    return not patterns or any(fnmatchcase(source.module, pattern) for pattern in patterns)


def _architectures(arch: str) -> list[str]:
    """What to assemble a module of this architecture for: a specific target (`sm90a`) serves itself only."""
    own = arch.removeprefix("sm")
    if own.endswith("a"):
        return [f"sm_{own}"]
    return [name for name in ARCHITECTURES if int(name.removeprefix("sm_")) >= int(own)]


def _resources(log: str) -> Iterator[tuple[str, dict[str, int]]]:
    """Entry points and their numbers in what `ptxas -v` printed."""
    for block in log.split("Compiling entry function ")[1:]:
        yield (
            block.split("'")[1],
            {
                "registers": _largest(block, "registers"),
                "shared_nbytes": _largest(block, "bytes smem"),
                "stack_nbytes": _largest(block, "bytes stack frame"),
                "spill_store_nbytes": _largest(block, "bytes spill stores"),
                "spill_load_nbytes": _largest(block, "bytes spill loads"),
            },
        )


def _largest(text: str, unit: str) -> int:
    """The largest number before `unit`: functions that were not inlined are listed beside their kernel."""
    return max(map(int, re.findall(rf"(\d+) {unit}", text)), default=0)


def _check_local_memory(source: Source, entry: str, arch: str, numbers: dict[str, int], allowed: int) -> None:
    used = max(numbers["stack_nbytes"], numbers["spill_store_nbytes"], numbers["spill_load_nbytes"])
    if used > allowed:
        raise CompileError(
            f"{source.label}: {entry} uses {used} bytes of local memory on {arch}, {allowed} are declared "
            f"({numbers}). "
            f"Save registers, or declare it: // baracuda: allow-spill {entry} {used}"
        )


def _json(manifest: dict[str, Any]) -> bytes:
    """Indented, a group of numbers on one line: a diff then has one line a kernel and architecture."""
    text = json.dumps(manifest, indent=1)
    numbers = r"\{(\s*\"\w+\": \d+,?)+\s*\}|\[[\d\s,]*\]"
    return (re.sub(numbers, lambda found: " ".join(found[0].split()), text) + "\n").encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
