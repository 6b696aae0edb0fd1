"""Laws of the PTX pipeline that need no compiler: what the build reads off a source, and that the committed
modules are what their manifests say."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from baracuda_py import sys as kernels
from baracuda_py.sys import build
from baracuda_py.sys.sources import Source, SourceError, find_sources, ptx_entries, ptx_isa, ptx_paths
from baracuda_py.sys.toolchain import Toolchain

ROOT = Path(build.__file__).parent
SOURCES = find_sources(ROOT)

PTX = """
.version 9.0
.target sm_80

.visible .entry scale_sm80_f16(
\t.param .u64 scale_sm80_f16_param_0,
\t.param .align 8 .b8 scale_sm80_f16_param_1[168],
\t.param .u32 scale_sm80_f16_param_2
)
.maxntid 32, 4, 1
{
\tret;
}
.visible .entry plain()
{
\tret;
}
"""


def write_source(root: Path, text: str, name: str = "src/norm/rms_norm/sm80.cu") -> Source:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return Source(root, path)


def write_header(root: Path, name: str, text: str) -> None:
    path = root / "include" / "baracuda" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


# Names


@pytest.mark.parametrize(
    ("stem", "arch", "module"),
    [("sm80", "sm80", "norm.rms_norm"), ("sm90a_small_m", "sm90a", "norm.rms_norm.small_m")],
)
def test_a_file_name_gives_module_and_architecture(tmp_path: Path, stem: str, arch: str, module: str) -> None:
    source = write_source(tmp_path, "", f"src/norm/rms_norm/{stem}.cu")
    assert (source.arch, source.module) == (arch, module)


@pytest.mark.parametrize("name", ["src/norm/rms_norm/fast.cu", "src/norm/sm80.cu", "src/norm/rms_norm/sm80-b.cu"])
def test_a_source_of_another_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError, match="is named"):
        write_source(tmp_path, "", name)


# Constants and headers


def test_constants_come_from_the_source_and_from_the_headers_it_reaches(tmp_path: Path) -> None:
    write_header(tmp_path, "tile.cuh", '#include "baracuda/warp.cuh"\nBARACUDA_CONSTANT(kTileN, 64);\n')
    write_header(tmp_path, "warp.cuh", "  BARACUDA_CONSTANT(kWarp, 0x20);\n")
    write_header(tmp_path, "unused.cuh", "BARACUDA_CONSTANT(kUnused, 1);\n")
    source = write_source(
        tmp_path,
        "#include <baracuda/tile.cuh>\n#include <cuda_fp16.h>\nBARACUDA_CONSTANT( kRows , 7 );\n"
        "#define BARACUDA_CONSTANT(name, value) constexpr int name = value\n"
        "// BARACUDA_CONSTANT(kComment, 1);\n/*\nBARACUDA_CONSTANT(kBlock, 2);\n*/\n",
    )
    assert source.constants() == {"kRows": 7, "kTileN": 64, "kWarp": 32}
    assert list(source.own_files()) == [
        "include/baracuda/tile.cuh",
        "include/baracuda/warp.cuh",
        "src/norm/rms_norm/sm80.cu",
    ]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("BARACUDA_CONSTANT(kTile, 4 * 16);", "integer literal"),
        ("BARACUDA_CONSTANT(kTile, 4);\nBARACUDA_CONSTANT(kTile, 5);", "stated twice"),
        ('#include "cuda_fp16.h"', "write <cuda_fp16.h>"),
    ],
)
def test_what_python_could_read_differently_is_refused(tmp_path: Path, line: str, complaint: str) -> None:
    with pytest.raises(SourceError, match=complaint):
        write_source(tmp_path, line + "\n").constants()


def test_headers_that_include_each_other_are_read_once(tmp_path: Path) -> None:
    write_header(tmp_path, "a.cuh", '#include "baracuda/b.cuh"\nBARACUDA_CONSTANT(kA, 1);\n')
    write_header(tmp_path, "b.cuh", '#include "baracuda/a.cuh"\nBARACUDA_CONSTANT(kB, 2);\n')
    assert write_source(tmp_path, '#include "baracuda/a.cuh"\n').constants() == {"kA": 1, "kB": 2}


# Directives


def test_directives_declare_spills_and_confirm_the_architecture(tmp_path: Path) -> None:
    source = write_source(tmp_path, "// baracuda: arch=sm80\n// baracuda: allow-spill big_sm80_f32 48\n")
    assert source.allowed_spills() == {"big_sm80_f32": 48}


@pytest.mark.parametrize("directive", ["arch=sm90a", "allow-spill big", "allow-spill big many", "fast"])
def test_an_unreadable_directive_is_refused(tmp_path: Path, directive: str) -> None:
    with pytest.raises(SourceError, match="cannot read"):
        write_source(tmp_path, f"// baracuda: {directive}\n").allowed_spills()


# PTX


def test_entries_of_a_ptx_text_carry_parameter_sizes_and_thread_bounds() -> None:
    scale, plain = ptx_entries(PTX)
    assert (scale.name, scale.parameter_nbytes, scale.max_threads) == ("scale_sm80_f16", (8, 168, 4), 128)
    assert (plain.name, plain.parameter_nbytes, plain.max_threads) == ("plain", (), None)
    assert ptx_isa(PTX) == "9.0"


def test_entries_of_a_ptx_text_carry_the_blocks_of_a_cluster() -> None:
    clustered = PTX.replace(".maxntid 32, 4, 1\n", ".maxntid 32, 4, 1\n.explicitcluster\n.reqnctapercluster 2, 1, 1\n")
    assert [(entry.max_threads, entry.cluster) for entry in ptx_entries(clustered)] == [(128, 2), (None, 1)]
    with pytest.raises(SourceError, match=r"scale_sm80_f16: .* along x only"):
        list(ptx_entries(clustered.replace("2, 1, 1", "1, 2, 1")))


def test_a_manifest_says_the_blocks_of_a_cluster_where_a_kernel_has_clusters(tmp_path: Path) -> None:
    clustered = PTX.replace(".maxntid 32, 4, 1\n", ".maxntid 32, 4, 1\n.reqnctapercluster 2, 1, 1\n")
    toolchain: Any = SimpleNamespace(
        include=tmp_path,
        nvrtc_version="13",
        ptxas_version="13",
        compile=lambda *_arguments: f"// V13\n{clustered}".encode(),
        assemble=lambda _ptx, _arch: "Compiling entry function 'scale_sm80_f16'\nCompiling entry function 'plain'\n",
    )
    source = write_source(tmp_path, "", "src/norm/rms_norm/sm90a.cu")
    _, manifest = build.build_module(source, toolchain)
    entries = json.loads(manifest)["entries"]
    assert (entries["scale_sm80_f16"]["cluster"], "cluster" in entries["plain"]) == (2, False)
    (tmp_path / "made.json").write_bytes(manifest)
    read = kernels._read(tmp_path / "made.json", tmp_path)
    assert (read.entry("scale_sm80_f16").cluster, read.entry("plain").cluster) == (2, 1)


@pytest.mark.parametrize("line", ['\t.file\t1 "x.cu"', "\t.loc 1 2 3", "// from /home/me/x.cu", '"C:\\src"'])
def test_paths_in_a_ptx_text_are_found(line: str) -> None:
    assert ptx_paths(PTX) == []
    assert ptx_paths(PTX + line) == [line]


def test_ptxas_numbers_are_read_for_each_entry() -> None:
    log = (
        "ptxas info    : Compiling entry function 'a' for 'sm_80'\n"
        "ptxas info    : Function properties for a\n"
        "    16 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads\n"
        "ptxas info    : Used 40 registers, used 1 barriers, 2048 bytes smem\n"
        "ptxas info    : Compiling entry function 'b' for 'sm_80'\n"
        "ptxas info    : Used 9 registers, used 0 barriers\n"
    )
    numbers = dict(build._resources(log))
    assert numbers["a"] == {
        "registers": 40,
        "shared_nbytes": 2048,
        "stack_nbytes": 16,
        "spill_store_nbytes": 12,
        "spill_load_nbytes": 20,
    }
    assert numbers["b"]["registers"] == 9
    assert sum(numbers["b"].values()) == 9


def test_local_memory_above_what_is_declared_is_refused(tmp_path: Path) -> None:
    source = write_source(tmp_path, "")
    used = {"stack_nbytes": 16, "spill_store_nbytes": 12, "spill_load_nbytes": 20}
    build._check_local_memory(source, "a", "sm_80", used, 20)
    with pytest.raises(build.CompileError, match="allow-spill a 20"):
        build._check_local_memory(source, "a", "sm_80", used, 19)


@pytest.mark.parametrize(
    ("told", "status"),
    [
        ("ptxas warning : Local memory", 0),
        ("ptxas info : (C7514) Potential Performance Loss: wgmma.mma_async instructions are serialized", 0),
        ("ptxas fatal : Unresolved", 255),
    ],
)
def test_what_ptxas_refuses_warns_of_or_runs_slowly_is_refused(tmp_path: Path, told: str, status: int) -> None:
    ptxas = tmp_path / "ptxas"
    toolchain = object.__new__(Toolchain)
    toolchain._ptxas = ptxas
    for text, code in (("ptxas info : Used 8 registers", 0), (told, status)):
        ptxas.write_text(f"#!/bin/sh\necho '{text}'\nexit {code}\n", "utf-8")
        ptxas.chmod(0o755)
        if text == told:
            with pytest.raises(build.CompileError, match="ptxas for sm_90 says"):
                toolchain.assemble(b"", "sm_90")
        else:
            assert toolchain.assemble(b"", "sm_90") == f"{text}\n"


def test_a_portable_module_serves_its_own_and_later_architectures_and_a_specific_one_itself() -> None:
    assert build._architectures("sm80") == list(build.ARCHITECTURES)
    assert build._architectures("sm89") == [a for a in build.ARCHITECTURES if kernels.parse_arch(a) >= (8, 9)]
    assert build._architectures("sm90a") == ["sm_90a"]


def test_a_ptx_file_without_a_source_is_reported(tmp_path: Path) -> None:
    folder = tmp_path / "sm80"
    folder.mkdir()
    (folder / "gone.op.ptx").touch()
    (folder / "gone.op.json").touch()
    for source in SOURCES:
        (tmp_path / source.arch).mkdir(exist_ok=True)
        (tmp_path / source.arch / f"{source.module}.ptx").touch()
    assert build._orphans(tmp_path) == ["sm80/gone.op.json: has no source", "sm80/gone.op.ptx: has no source"]


# Committed modules


def test_sources_and_modules_are_the_same_set() -> None:
    assert [(one.module, one.arch) for one in SOURCES] == [(one.name, one.arch) for one in kernels.modules()]
    assert build._orphans(ROOT / "ptx") == []
    assert SOURCES


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: f"{source.module}-{source.arch}")
def test_a_manifest_describes_its_files(source: Source) -> None:
    manifest = json.loads(build._ptx_path(source, ROOT / "ptx").with_name(f"{source.module}.json").read_text())
    files = {label: hashlib.sha256(path.read_bytes()).hexdigest() for label, path in source.own_files().items()}
    assert manifest["files"] == files, "a source changed: run python -m baracuda_py.sys.build"
    assert manifest["constants"] == source.constants()
    assert manifest["allowed_spills"] == source.allowed_spills()
    assert manifest["flags"][1:] == list(build.FLAGS)


@pytest.mark.parametrize("module", kernels.modules(), ids=lambda module: f"{module.name}-{module.arch}")
def test_a_module_is_what_its_manifest_says(module: kernels.PtxModule) -> None:
    text = module.ptx.decode("ascii")
    assert ptx_paths(text) == []
    assert f"{module.isa[0]}.{module.isa[1]}" == ptx_isa(text)
    assert {e.name: (e.parameter_nbytes, e.max_threads, e.cluster) for e in ptx_entries(text)} == {
        name: (e.parameter_nbytes, e.max_threads, e.cluster) for name, e in module.entries.items()
    }
    assert set(module.assembled_only) <= set(module.serves)
    for entry in module.entries.values():
        assert tuple(entry.resources) == module.serves
        assert all(0 < numbers.registers <= 255 for numbers in entry.resources.values())


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: f"{source.module}-{source.arch}")
def test_no_kernel_uses_local_memory_that_its_source_does_not_declare(source: Source) -> None:
    allowed = source.allowed_spills()
    for name, entry in kernels.module(source.module, source.arch).entries.items():
        for capability, numbers in entry.resources.items():
            used = max(numbers.stack_nbytes, numbers.spill_store_nbytes, numbers.spill_load_nbytes)
            assert used <= allowed.get(name, 0), (name, capability)


# Look-up


def test_a_missing_module_kernel_or_constant_is_refused_with_what_exists() -> None:
    some = kernels.modules()[0]
    with pytest.raises(LookupError, match=some.name):
        kernels.module("no.such", "sm80")
    with pytest.raises(LookupError, match=next(iter(some.entries))):
        some.entry("no_such")
    with pytest.raises(LookupError, match=r"no constant 'kNone'; there are: "):
        some.constant("kNone")


def test_ptx_that_differs_from_its_manifest_is_refused(tmp_path: Path) -> None:
    some = kernels.modules()[0]
    changed = tmp_path / "changed.ptx"
    changed.write_bytes(some.ptx + b"\n")
    module = kernels.PtxModule(
        some.name, some.arch, some.sha256, some.isa, some.entries, some.constants, some.serves, (), changed
    )
    with pytest.raises(ValueError, match="differs from its manifest"):
        _ = module.ptx


@pytest.mark.parametrize(("arch", "capability"), [("sm80", (8, 0)), ("sm_90a", (9, 0)), ("sm_120", (12, 0))])
def test_architecture_names_parse(arch: str, capability: tuple[int, int]) -> None:
    assert kernels.parse_arch(arch) == capability


@pytest.mark.parametrize("arch", ["80", "sm", "sm_8", "sm_9x", "compute_80", ""])
def test_a_name_that_is_no_architecture_is_refused(arch: str) -> None:
    with pytest.raises(ValueError, match="write it like"):
        kernels.parse_arch(arch)


def test_portable_ptx_loads_on_later_gpus_and_specific_ptx_on_its_own_only() -> None:
    some = kernels.modules()[0]
    facts = (some.sha256, some.isa, some.entries, some.constants, some.serves, (), Path("none"))
    portable, specific = kernels.PtxModule("m", "sm80", *facts), kernels.PtxModule("m", "sm90a", *facts)
    assert [portable.loads_on(one) for one in ((7, 5), (8, 0), (8, 7), (9, 0), (12, 1))] == [False] + [True] * 4
    assert [specific.loads_on(one) for one in ((8, 9), (9, 0), (10, 0))] == [False, True, False]
