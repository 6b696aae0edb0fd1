"""Every barrier and every wait in the CUDA sources is there for a reason that the emulator sees when it is gone, and
arithmetic that only just misses is not near enough."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from attrs import evolve, frozen
from cuda_emulator.backend import HOPPER, HOPPER_SLICE, EmulatorBackend, Modules, emulated_registry
from cuda_emulator.compiler import PACKAGE, Unit, sources
from cuda_emulator.problems import cuda_kernels, problems

import baracuda_py
from baracuda_py.errors import DriverError
from baracuda_py.registry import Kernel
from baracuda_py.testing.calls import Call, frobenius_error, reference_outputs
from baracuda_py.testing.data import inputs_for
from baracuda_py.vocab.code import PtxCode
from baracuda_py.vocab.tolerance import relative_tolerance

_ORDERS = re.compile(
    r"__sync(?:threads|warp)\(\);|cp_async_commit\(\);|cp_async_wait<[^;]*>\(\);"
    r"|partial_barrier(?:_arrive)?<[^;]*>\([^;]*\);|fence_before_bulk_copy\(\);"
    r"|mbarrier_(?:wait(?:_for_warp)?|arrive|fence_init)\([^;]*\);"
    r"|cluster_(?:arrive|arrive_relaxed|wait)\(\);"
    r"|wgmma_(?:fence|commit)\(\);|wgmma_wait<[^;]*>\(\);"
)

# Headers that define them.
_DEFINED = ("bulk_copy.cuh", "cluster.cuh", "cp_async.cuh", "mbarrier.cuh", "partial_barrier.cuh", "wgmma.cuh")

_FAULTS = (
    "since the last barrier|not waited for|not written|in flight|never ends|no fence|do not reach|more threads arrive"
    "|left the kernel without|nobody waits for|there is no mbarrier|no fence orders|matrix instructions run"
    "|since the last wait|no cluster barrier|has ended|might have ended|without a wait|without an arrival"
)

# Statements that may go without harm: file, the statement and as much behind it as tells it apart, its reason to stay.
_CONVERGES = "__syncwarp();\n  __syncthreads();"
_ENDS = "cluster_wait();\n    }\n    return;"
_HARMLESS = {
    ("include/baracuda/awq_gemm_splitk.cuh", "cp_async_wait<0>();"): "only empty groups are pending after the loop",
    ("include/baracuda/awq_fp8_gemm_tiled.cuh", _CONVERGES): "a GPU's barrier wants warps whole, the emulator's not",
    ("include/baracuda/awq_gemm_bulk.cuh", _CONVERGES): "as above",
    ("include/baracuda/awq_gemm_tiled_wide.cuh", _CONVERGES): "as above",
    ("include/baracuda/awq_gemm_warpgroup.cuh", _CONVERGES): "as above",
    ("include/baracuda/awq_gemm_bulk.cuh", f"__syncwarp();\n      {_ENDS}"): "as above, the cluster's",
    ("include/baracuda/awq_gemm_warpgroup.cuh", f"__syncwarp();\n      {_ENDS}"): "as above",
    ("include/baracuda/awq_gemm_bulk.cuh", "__syncwarp();  // the last lanes"): "as above",
    ("include/baracuda/awq_gemm_bulk.cuh", _ENDS): "a warp that ends counts as arrived, only later",
    ("include/baracuda/awq_gemm_warpgroup.cuh", _ENDS): "as above",
    ("include/baracuda/awq_gemm_warpgroup.cuh", "cluster_wait();\n        return;"): "as above",
    ("include/baracuda/awq_fp8_gemm_tiled.cuh", "__syncwarp();  // or the"): "the compiler wants it, not the order",
    ("include/baracuda/awq_gemm_tiled_wide.cuh", "__syncwarp();  // or the"): "as above",
}
_ROOM_FOR_ONE = "partial_barrier<kWarpgroupThreads>(barrier);\n      }\n      put(chunk);"
# Modules that show a file's, or those of them that begin so, where the first that has it orders the same in another way
# too, has fewer problems that show it, no clusters, or room for two chunks in all of its stores.
_SHOWN_BY = {
    ("include/baracuda/awq_gemm_wide_store.cuh", _ROOM_FOR_ONE): "sm90a.quantize.awq_gemm.tiled_wide_many_bf16_g4",
    ("include/baracuda/awq_gemm_wide_store.cuh", ""): "sm90a.quantize.awq_gemm.tiled_wide_few_bf16_g1",
    ("include/baracuda/awq_fp8_gemm_tiled.cuh", ""): "sm90a.quantize.awq_fp8_gemm.tiled_bf16_g1",
    ("include/baracuda/awq_gemm_warpgroup.cuh", "cluster_"): "sm90a.quantize.awq_gemm.warpgroup_bf16_g1",
    ("include/baracuda/awq_gemm_warpgroup.cuh", ""): "sm90a.quantize.awq_gemm.warpgroup_bf16_g2",
    ("include/baracuda/awq_gemm_bulk.cuh", "cluster_"): "sm90a.quantize.awq_gemm.bulk_hf_gemm_bf16_g1",
    ("include/baracuda/awq_gemm_bulk.cuh", ""): "sm90a.quantize.awq_gemm.tiled_bf16_g1",
}
# By a module, that whose kernels launch it for some problems.
_LAUNCHED_WITH = {
    "sm90a.quantize.awq_gemm.warpgroup_bf16_g2": "sm90a.quantize.awq_gemm.warpgroup_bf16_g1",
    "sm90a.quantize.awq_gemm.tiled_wide_many_bf16_g4": "sm90a.quantize.awq_gemm.tiled_wide_few_bf16_g1",
}


@frozen
class Removal:
    """One statement of a file, and a module, `<arch>.<name>`, that the file is part of."""

    label: str
    begin: int
    statement: str
    module: str

    def __str__(self) -> str:
        line = (PACKAGE / self.label).read_text("utf-8")[: self.begin].count("\n") + 1
        return f"{Path(self.label).name}:{line}:{self.statement}"


def _removals() -> list[Removal]:
    found: dict[tuple[str, int], Removal] = {}
    for source in sources():
        module = f"{source.arch}.{source.module}"
        if not _kernels_of(module):  # no built-in op launches it first: there is nothing to run
            continue
        for label, path in source.own_files().items():
            text = path.read_text("utf-8")
            for match in _ORDERS.finditer(text):
                if _shown_by(label, text[match.start() :], module) != module:
                    continue
                harmless = any(label == file and text.startswith(known, match.start()) for file, known in _HARMLESS)
                if not harmless and Path(label).name not in _DEFINED:
                    found.setdefault((label, match.start()), Removal(label, match.start(), match[0], module))
    return list(found.values())


def _shown_by(label: str, text: str, module: str) -> str:
    """Of the statement that the text begins with."""
    found = (shown for (file, begin), shown in _SHOWN_BY.items() if file == label and text.startswith(begin))
    return next(found, module)


def _kernels_of(module: str) -> list[Kernel]:
    """Kernels whose first launch is of the module, or may be."""
    arch, _, name = _LAUNCHED_WITH.get(module, module).partition(".")
    return [
        kernel for kernel in cuda_kernels()
        if isinstance(kernel.code, PtxCode) and (kernel.code.arch.name.lower(), kernel.code.module) == (arch, name)
    ]  # fmt: skip


def _first_fault(modules: Modules, module: str, changed: Unit, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the first run of one of the changed module's kernels that fails says; empty when all succeed."""
    compiled: set[str] = set()
    # What only a small GPU shows comes last.
    for gpu in (HOPPER, HOPPER_SLICE) if module.startswith("sm90a") else (HOPPER,):
        whole = emulated_registry(EmulatorBackend(modules, gpu))
        for kernel in _kernels_of(module):
            for case in problems(whole, kernel):
                needed = {launch.entry for launch in case.plan.launches} & set(changed.entries)
                if not needed:
                    continue
                if not needed <= compiled:
                    # The first problem shows most changes: the time that its kernels take to compile is then all.
                    compiled = set(changed.entries) if compiled else needed
                    with_change = modules.with_replaced({module: evolve(changed, entries=tuple(sorted(compiled)))})
                backend = EmulatorBackend(with_change, gpu)
                registry = emulated_registry(backend)
                monkeypatch.setattr(baracuda_py, "default_registry", lambda registry=registry: registry)
                for backend.emulated.looping_grid in (None, 1):
                    try:
                        Call.of(evolve(case, registry=registry)).run()
                    except DriverError:
                        return str(backend.emulated.fault)
    return ""


@pytest.mark.parametrize("removal", _removals(), ids=str)
def test_a_kernel_without_one_of_its_barriers_or_waits_is_caught(removal, modules, tmp_path, monkeypatch):
    for folder in ("include", "src"):
        shutil.copytree(PACKAGE / folder, tmp_path / folder)
    path = tmp_path / removal.label
    text = path.read_text("utf-8")
    end = removal.begin + len(removal.statement)
    path.write_text(text[: removal.begin] + text[end:], "utf-8")
    unit = modules.units[removal.module]
    changed = evolve(unit, path=tmp_path / unit.path.relative_to(PACKAGE), include=tmp_path / "include")
    fault = _first_fault(modules, removal.module, changed, monkeypatch)
    assert re.search(_FAULTS, fault), fault or "no fault"


def test_the_statements_said_to_be_harmless_exist():
    for label, statement in _HARMLESS:
        assert statement in (PACKAGE / label).read_text("utf-8")


_PAIR, _BULK = "include/baracuda/int4_pair.cuh", "include/baracuda/awq_gemm_bulk.cuh"
_OC_MAJOR = "include/baracuda/awq_gemm_bulk_oc_major.cuh"


@pytest.mark.parametrize(
    ("module", "label", "right", "wrong"),
    [
        ("tiled_f16_g1", _PAIR, "0x1p24f : 0x1p20f", "0x1p24f : 0x1p24f"),
        ("tiled_f16_g1", _PAIR, "ones() { return kOne; }", "ones() { return kSixteenth; }"),
        ("tiled_f16_g1", _BULK, "value_of_lane(sum, 8 * t + 4)", "value_of_lane(sum, 8 * t)"),
        ("tiled_bf16_g1", _BULK, "r_halves[n][0] + r_halves[n][2]", "2 * r_halves[n][0]"),
        ("bulk_hf_gemm_bf16_g1", _BULK, "__byte_perm(zeros, 0, 0x4140)", "__byte_perm(zeros, 0, 0x4041)"),
        ("bulk_oc_major_f16_g1", _PAIR, "word >> kNibbleBits * (position - 1)", "word >> 4 * position"),
        ("bulk_oc_major_f16_g1", _OC_MAJOR, "<< kNibbleBits * (1 - column % 2)", "<< kNibbleBits * (column % 2)"),
        ("bulk_oc_major_f16_g4", _PAIR, "position % 2 == 0 ? 0x4c004c00u : kOne;", "kOne;"),
    ],
)  # fmt: skip
def test_wrong_arithmetic_on_zero_points_is_caught(module, label, right, wrong, modules, tmp_path, monkeypatch):
    for folder in ("include", "src"):
        shutil.copytree(PACKAGE / folder, tmp_path / folder)
    text = (PACKAGE / label).read_text("utf-8")
    assert right in text
    (tmp_path / label).write_text(text.replace(right, wrong, 1), "utf-8")
    name = f"sm90a.quantize.awq_gemm.{module}"
    unit = modules.units[name]
    whole = emulated_registry(EmulatorBackend(modules, HOPPER))
    bulk = [kernel for kernel in cuda_kernels() if kernel.sku.variant.startswith("bulk")]
    cases = (case for kernel in bulk for case in problems(whole, kernel))
    case = next(case for case in cases if any(launch.entry in unit.entries for launch in case.plan.launches))
    changed = evolve(
        unit, path=tmp_path / unit.path.relative_to(PACKAGE), include=tmp_path / "include",
        entries=tuple({launch.entry for launch in case.plan.launches} & set(unit.entries)),
    )  # fmt: skip
    registry = emulated_registry(EmulatorBackend(modules.with_replaced({name: changed}), HOPPER))
    monkeypatch.setattr(baracuda_py, "default_registry", lambda: registry)
    inputs = inputs_for(case.op, case.descriptor)
    exact = reference_outputs(case.op, case.descriptor, inputs)["output"]
    found = Call.of(evolve(case, registry=registry), inputs).run()["output"]
    assert frobenius_error(found, exact) > relative_tolerance(case.guarantee, case.descriptor.element)


def test_the_modules_that_show_statements_have_kernels():
    modules = {*_SHOWN_BY.values(), *_LAUNCHED_WITH}
    assert all(map(_kernels_of, modules))
    shown = {removal.module for removal in _removals()}
    assert modules <= shown
