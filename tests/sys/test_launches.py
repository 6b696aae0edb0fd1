"""Launches agree with the manifests: entries, parameter sizes, block sizes, shared memory."""

from __future__ import annotations

import re

import pytest

import baracuda_py as bp
from baracuda_py.ops.quantize import awq_fp8_gemm_sm90a, awq_gemm_sm90a_wide
from baracuda_py.sys import module, modules
from baracuda_py.testing.calls import serves
from baracuda_py.vocab.code import (
    Launch,
    Pointer,
    PtxCode,
    SequenceCode,
    Stride,
    TensorMap,
    WhenOverlapping,
    launches_of,
)
from baracuda_py.vocab.device import Device, dry_device

DEVICES = [dry_device(name) for name in ("sm_80", "sm_86", "sm_90", "sm_120")]
KERNELS = [
    (op, kernel)
    for op in bp.default_registry().ops() for kernel in op.kernels if isinstance(kernel.code, PtxCode | SequenceCode)
]  # fmt: skip


def _nbytes(parameter: object) -> set[int]:
    """Sizes that the kernel may declare for a parameter: a plain number may be a 4-byte int."""
    if isinstance(parameter, tuple):
        return {8 * len(parameter)}
    if isinstance(parameter, TensorMap):
        return {128}
    return {8} if isinstance(parameter, (Pointer, Stride)) else {4, 8}


# KiB that a block may have on each of DEVICES.
SHARED = {(8, 0): 163, (8, 6): 99, (9, 0): 227, (12, 0): 99}


def _check(launch: Launch, kernel: bp.Kernel, device: Device) -> None:
    name = launch.module or kernel.code.module
    entry = module(name, (launch.arch or kernel.sku.arch).name.lower()).entry(launch.entry)
    assert len(launch.parameters) == len(entry.parameter_nbytes)
    for parameter, nbytes in zip(launch.parameters, entry.parameter_nbytes, strict=True):
        if isinstance(parameter, WhenOverlapping):
            parameter = max(parameter.plain, parameter.overlapping)
        assert nbytes in _nbytes(parameter), (launch.entry, parameter)
        if nbytes == 4:
            assert isinstance(parameter, int)
            assert -(1 << 31) <= parameter < 1 << 32
    x, y, z = launch.block
    assert entry.max_threads is not None
    assert 0 < x * y * z <= entry.max_threads
    assert min(launch.grid) > 0
    assert launch.grid[0] < 1 << 31
    assert launch.grid[0] % entry.cluster == 0
    assert max(launch.grid[1:]) < 1 << 16
    static = max(resources.shared_nbytes for resources in entry.resources.values())
    assert device.capability is not None
    assert launch.shared_bytes + static <= SHARED[device.capability] * 1024


@pytest.mark.parametrize(("op", "kernel"), KERNELS, ids=lambda value: getattr(value, "name", None) or str(value.sku))
def test_every_launch_is_what_its_kernel_was_compiled_for(op, kernel):
    checked = 0
    for device in DEVICES:
        for example in op.examples:
            if op.is_empty(example) or not device.loads(kernel.sku.arch) or not serves(op, kernel, example):
                continue
            for launch in launches_of(kernel.code, example, device):
                _check(launch, kernel, device)
                checked += 1
    assert checked


@pytest.mark.parametrize("m", [1, 8, 9, 16, 17, 64, 65, 4096])
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("layout", list(bp.AwqWeightLayout))
def test_awq_gemm_launches_of_real_shapes(m, group_size, layout):
    for ic, oc in [(4096, 4096), (896, 4864), (28672, 8192), (8192, 28672), (10944, 2048)]:
        desc = bp.Int4AwqGemmDescriptor(m, ic, oc, group_size if ic % group_size == 0 else 32, None, layout)
        for device in DEVICES:
            plan = bp.select(desc, device)
            for launch in plan.launches:
                _check(launch, plan.kernel, device)


@pytest.mark.parametrize(
    ("name", "tokens"),
    [(r"quantize\.awq_gemm\.tiled_wide_(few|many)_", awq_gemm_sm90a_wide._TOKENS),
     (r"quantize\.awq_fp8_gemm\.tiled_", awq_fp8_gemm_sm90a._TOKENS)],
    ids=["f16 and bf16", "fp8"],
)  # fmt: skip
def test_tiles_that_a_schedule_chooses_from_are_those_that_were_compiled(name, tokens):
    compiled: dict[str, set[int]] = {}
    for found in modules():
        if re.match(name, found.name):
            kind = re.sub(r"_(few|many)_", "_", found.name)
            entries = (re.search(r"_t(\d+)_g\d$", entry) for entry in found.entries)
            compiled.setdefault(kind, set()).update(int(entry[1]) for entry in entries if entry)
    assert compiled
    assert all(found == set(tokens) for found in compiled.values())
