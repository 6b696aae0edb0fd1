"""A launch that may begin before the one ahead of it has ended touches nothing that that one may use until it has."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path

import pytest
from attrs import evolve
from cuda_emulator.backend import HOPPER, HOPPER_SLICE, EmulatorBackend, Modules, emulated_registry
from cuda_emulator.compiler import PACKAGE, sources
from cuda_emulator.problems import cuda_kernels, problems

import baracuda_py
from baracuda_py.errors import DriverError
from baracuda_py.registry import Kernel
from baracuda_py.testing.calls import Call, Case
from baracuda_py.testing.data import same_bits
from baracuda_py.vocab.code import PtxCode
from baracuda_py.vocab.elements import bits_of
from baracuda_py.vocab.enums import EpilogueKind

_WAIT = "grid_dependency_wait();"
_FAULT = "the launch before may still write"
KERNELS = [
    kernel for kernel in cuda_kernels()
    if kernel.sku.arch.name == "SM90A" and kernel.sku.epilogue in (EpilogueKind.IDENTITY, EpilogueKind.BIAS_SILU)
]  # fmt: skip


def _overlapping(case: Case, backend: EmulatorBackend) -> dict:
    """The outputs of a launch behind one that still uses all but the constant arguments."""
    call = Call.of(case)
    used = [memory for name, memory in call.tensors.items() if memory is not None and call.role(name) != "constant"]
    views = [memory.view for memory in (*used, call.workspace_memory) if memory is not None]
    nbytes = [math.prod(view.shape) * bits_of(view.element) // 8 for view in views]
    backend.emulated.unfinished = list(zip([view.pointer for view in views], nbytes, strict=True))
    call.plan.bind(call.args, call.workspace, overlap=True)()
    return call.outputs()


def _overlap(case: Case) -> bool:
    return bool(case.plan.launches) and case.plan.launches[0].overlaps


@pytest.mark.parametrize("gpu", [HOPPER, HOPPER_SLICE], ids=["whole", "slice"])  # one tile a thread block, and several
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: str(kernel.sku))
def test_a_launch_that_overlaps_waits_before_it_touches_what_the_other_uses(kernel, gpu, modules, monkeypatch):
    backend = EmulatorBackend(modules, gpu)
    registry = emulated_registry(backend)
    monkeypatch.setattr(baracuda_py, "default_registry", lambda: registry)
    checked = 0
    for case in problems(registry, kernel):
        if _overlap(case):
            expected = Call.of(case).run()
            try:
                found = _overlapping(case, backend)
            except DriverError as error:
                error.add_note(f"{case}: {backend.emulated.fault}")
                raise
            assert same_bits(expected, found), str(case)
            checked += 1
    assert checked


def test_every_kernel_that_may_overlap_is_among_them(registry):
    assert len(_waits()) >= 3
    for kernel in cuda_kernels():
        overlap = any(_overlap(case) for case in problems(registry, kernel))
        assert overlap == (kernel.sku.arch.name == "SM90A")


def _waits() -> list[tuple[str, int, str]]:
    """File, place and a module, `<arch>.<name>`, of every wait."""
    found = {}
    for source in sources():
        for label, path in source.own_files().items():
            if path.name != "grid_dependency.cuh":
                for match in re.finditer(re.escape(_WAIT), path.read_text("utf-8")):
                    found.setdefault((label, match.start()), f"{source.arch}.{source.module}")
    return [(*place, module) for place, module in found.items()]


@pytest.mark.parametrize(("label", "begin", "module"), _waits(), ids=lambda value: Path(str(value)).name)
def test_a_kernel_without_one_of_its_waits_is_caught(label, begin, module, modules: Modules, tmp_path, monkeypatch):
    for folder in ("include", "src"):
        shutil.copytree(PACKAGE / folder, tmp_path / folder)
    text = (tmp_path / label).read_text("utf-8")
    (tmp_path / label).write_text(text[:begin] + text[begin + len(_WAIT) :], "utf-8")
    unit = modules.units[module]
    changed = evolve(unit, path=tmp_path / unit.path.relative_to(PACKAGE), include=tmp_path / "include")
    backend = EmulatorBackend(modules.with_replaced({module: changed}), HOPPER)
    registry = emulated_registry(backend)
    monkeypatch.setattr(baracuda_py, "default_registry", lambda: registry)
    assert _FAULT in _first_fault(module, registry, backend)


def _first_fault(module: str, registry, backend: EmulatorBackend) -> str:
    for kernel in cuda_kernels():
        if not _is_of(kernel, module):
            continue
        for case in problems(registry, kernel):
            try:
                _overlapping(case, backend)
            except DriverError:
                return str(backend.emulated.fault)
    return ""


def _is_of(kernel: Kernel, module: str) -> bool:
    code = kernel.code
    return isinstance(code, PtxCode) and f"{code.arch.name.lower()}.{code.module}" == module
